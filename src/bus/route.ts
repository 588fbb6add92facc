import type { JsonObject } from "@bufbuild/protobuf";
import { TrustTier } from "../../gen/moltwire/bus/v1/agent_pb.ts";
import type { Queryable } from "../db/db.ts";
import { nameIn } from "../enum-name.ts";
import { Fault } from "../errors.ts";
import { type AgentRow, agentsWithCapability, type CandidateRow, findAgent, peerIdOf, pulls } from "./agent-store.ts";
import { admission, type Circuit, closedCircuit, retryAt } from "./circuit/circuit.ts";
import { toCircuit } from "./circuit/circuit-store.ts";
import { stateName } from "./circuit/conduct.ts";
import type { Blocked } from "./circuit/refusal.ts";
import type { ContractRow } from "./contract-store.ts";
import { howToAsk } from "./policy/decide-task.ts";
import { somebody } from "./unshown.ts";
import { inTurn } from "./weights.ts";

/** How many fit agents of one capability take turns. */
export const maxConsidered = 250;
/** How many agents a trace names. */
const maxNamed = 20;

/** Why an agent may not do a task under a contract, or undefined. */
export type Objection = (agent: AgentRow, contract: ContractRow) => string | undefined;

/** Whom to look for. */
export type RouteQuery = {
  readonly orgId: string;
  readonly contract: ContractRow;
  /** The only agent that may, or empty. */
  readonly wantedAgentId: string;
  /** Whose turn it is among equals; see {@link inTurn}. */
  readonly turn: number;
  readonly now: number;
  /** The task, once it is accepted: it may have reserved the probe of an open circuit. */
  readonly taskId?: string;
  /** For which agent: those whose profile is private are hidden from it. Empty: an administrator, who may know of all. */
  readonly callerAgentId: string;
  /** Beside those that always hold, such as a policy's. The first reason counts. */
  readonly objections?: readonly Objection[];
};

export type Candidates = {
  /** Who may do the task, in the order in which they are tried. */
  readonly candidates: readonly AgentRow[];
  /** Those of them that one task may try, when there are no others: the circuits of all are open. */
  readonly toProbe: readonly AgentRow[];
  /** Who might, were it not for an open circuit. */
  readonly blocked: readonly Blocked[];
  /** Those of the candidates that pull and have no instance that is serving: they come after the others. */
  readonly absent: ReadonlySet<AgentRow>;
};

/** Whom policies let do it, if anybody yet, and why not others, by their ids. */
export type Ruling = {
  readonly permitted: AgentRow | undefined;
  readonly refusedBy: ReadonlyMap<string, Pick<Fault, "message">>;
};

/** Who may do a task, and what became of each agent that was considered. */
export type Route = Candidates & {
  readonly considered: number;
  /** What became of each, at most {@link maxNamed}, once policies were asked; without a ruling they are yet to be. */
  readonly verdicts: (ruling?: Ruling) => JsonObject[];
  /** Why those that may not do it may not, as the caller may read it. */
  readonly objections: readonly string[];
  /** When agents were considered and nothing but tools keeps any of them from it. */
  readonly toolless: Fault | undefined;
};

type Judged = { readonly agent: CandidateRow; readonly circuit: Circuit; readonly why: string | undefined };

/**
 * The agents of the organisation that have the contract's capability and may do it, or only the one that the caller wants: those whose circuit
 * lets them be called, those that pull and are not there last, the most trusted tier first, and of equals by turns, each as often as its weight says.
 */
export const candidatesFor = async (db: Queryable, query: RouteQuery): Promise<Candidates> =>
  inOrder(judge(await fitAgents(db, query, true), query), query);

/** The same, with a verdict on each agent; for the trace. */
export async function route(db: Queryable, query: RouteQuery): Promise<Route> {
  const usable = judge(await fitAgents(db, query, true), query);
  const others = judge(await fitAgents(db, query, false), query);
  const found = inOrder(usable, query);
  return {
    ...found,
    considered: usable.length + others.length,
    verdicts: (ruling) => named([...verdictsOn(found, query.now, ruling), ...refused([...usable, ...others])]),
    objections: objectionsOf([...usable, ...others]),
    toolless: others.length === 0 ? toolless(usable, query.contract) : undefined,
  };
}

/** The agent as it is now, if it may still do the work. Its circuit is asked when the attempt begins. */
export async function stillFit(
  db: Queryable,
  chosen: AgentRow,
  contract: ContractRow,
  objections: readonly Objection[] = [],
): Promise<AgentRow | undefined> {
  const agent = await findAgent(db, chosen.org_id, chosen.agent_id);
  const { hidden } = chosen;
  return agent && isFit(agent, contract, objections) ? { ...agent, hidden } : undefined;
}

/** Whether an agent may do the work, its circuit aside. */
export const isFit = (agent: AgentRow, contract: ContractRow, objections: readonly Objection[] = []): boolean =>
  (JSON.parse(agent.capabilities) as string[]).includes(contract.capability) &&
  whyNot(agent, contract, objections) === undefined;

async function fitAgents(
  db: Queryable,
  { orgId, contract, wantedAgentId, callerAgentId }: RouteQuery,
  fit: boolean,
): Promise<CandidateRow[]> {
  const wanted = { capability: contract.capability, onlyAgentId: wantedAgentId, tier: contract.security_class, fit };
  const rows = await agentsWithCapability(db, orgId, wanted, fit ? maxConsidered : maxNamed);
  const isHidden = (row: CandidateRow) => callerAgentId !== "" && row.private === 1 && row.agent_id !== callerAgentId;
  return rows.map((row) => ({ ...row, hidden: isHidden(row) }));
}

const judge = (agents: readonly CandidateRow[], { contract, objections = [] }: RouteQuery): Judged[] =>
  agents.map((agent) => ({
    agent,
    circuit: agent.state === null ? closedCircuit : toCircuit(agent),
    why: whyNot(agent, contract, objections),
  }));

function inOrder(judged: readonly Judged[], { turn, now, taskId }: RouteQuery): Candidates {
  const able = judged.filter(({ why }) => why === undefined);
  const { callable = [], blocked = [] } = Object.groupBy(able, ({ circuit }) =>
    admission(circuit, now, taskId) === "none" ? "blocked" : "callable",
  );
  const agents = callable.map(({ agent }) => agent);
  const absent = new Set(agents.filter((agent) => pulls(agent) && (agent.serving_until_ms ?? 0) <= now));
  const there = absent.size === 0 ? agents : agents.filter((agent) => !absent.has(agent));
  const candidates = [...byTier(there, turn), ...byTier([...absent], turn)];
  const isClosed = callable.some(({ circuit }) => admission(circuit, now) === "call");
  return { candidates, toProbe: isClosed ? [] : candidates, blocked, absent };
}

function byTier(agents: readonly CandidateRow[], turn: number): CandidateRow[] {
  const tiers = Map.groupBy(agents, (agent) => agent.trust_tier);
  return [...tiers.keys()]
    .toSorted((a, b) => a - b)
    .flatMap((tier) => {
      const equals = tiers.get(tier)!;
      const weights = equals.map(({ weight }) => weight);
      return inTurn(weights, turn).map((index) => equals[index]!);
    });
}

/** On those that might do it: a higher score goes first. Whom policies refuse has none. */
function verdictsOn(
  { candidates, blocked, absent }: Candidates,
  now: number,
  ruling: Ruling | undefined,
): JsonObject[] {
  const { permitted, refusedBy } = ruling ?? { permitted: undefined, refusedBy: new Map() };
  const found = candidates.map((agent, place) => {
    const refusal = refusedBy.get(agent.agent_id);
    if (refusal) return verdict(agent, `policies refuse it: ${shorten(refusal.message)}`);
    const score = scoreOf(agent, place, candidates.length) / (absent.has(agent) ? absentDivisor : 1);
    if (agent === permitted) return verdict(agent, turnOf(place, absent.has(agent)), score, true);
    const first = permitted ?? candidates[0]!;
    return verdict(agent, agent === first ? "goes first" : `fits; ${whyAfter(agent, first, absent)}`, score);
  });
  const score = (one: JsonObject) => one.score as number;
  return [
    ...found.toSorted((a, b) => score(b) - score(a)),
    ...blocked.map(({ agent, circuit }) => verdict(agent, whyBlocked(circuit, now))),
  ];
}

const turnOf = (place: number, absent: boolean): string => {
  const turn = place === 0 ? "its turn" : "the first that policies let do it";
  return absent ? `${turn}, though ${notServing}: the task waits for it` : turn;
};

/** Why an agent comes after the first. */
function whyAfter(agent: AgentRow, first: AgentRow, absent: ReadonlySet<AgentRow>): string {
  if (absent.has(agent) && !absent.has(first)) return `${notServing}: those that are there go first`;
  return agent.trust_tier > first.trust_tier ? "one of a more trusted tier goes first" : "another's turn";
}

const notServing = "it pulls and no instance of it is serving";
const shorten = (text: string): string => (text.length > 300 ? `${text.slice(0, 299)}…` : text);

/** The first, and the one that was chosen if it is not among them. */
function named(verdicts: readonly JsonObject[]): JsonObject[] {
  const shown = verdicts.slice(0, maxNamed);
  const chosen = verdicts.slice(maxNamed).find((one) => one.chosen);
  return chosen ? [...shown.slice(0, -1), chosen] : shown;
}

/** On those that may not. */
const refused = (judged: readonly Judged[]): JsonObject[] =>
  judged.filter(({ why }) => why !== undefined).map(({ agent, why }) => verdict(agent, why!));

/** Of the first; those that are hidden from the caller are only counted. */
function objectionsOf(judged: readonly Judged[]): string[] {
  const { shown = [], hidden = [] } = Object.groupBy(judged, ({ agent }) => (agent.hidden ? "hidden" : "shown"));
  const all = shown.flatMap(({ agent, why }) => (why === undefined ? [] : [`${agent.name} ${why}`]));
  const rest = hidden.length > 0 ? [`${hidden.length} more may not, whose profiles are private`] : [];
  return [...all.slice(0, maxNamed), ...rest];
}

const verdict = (agent: AgentRow, why: string, score = 0, chosen = false): JsonObject => ({
  agent_id: agent.agent_id,
  name: agent.name,
  chosen,
  score,
  why,
  ...(agent.private === 1 && { private: true }),
});

/** So that the best of those that are not there comes after the last of those that are. */
const absentDivisor = 10_000;

/** A hundred for each tier of trust, and within it up to a hundred for how soon it is its turn; 0 is for those that cannot. */
const scoreOf = (agent: AgentRow, place: number, of: number): number =>
  (TrustTier.PUBLIC_VENDOR - agent.trust_tier) * 100 + Math.round(100 * (1 - place / of) * 100) / 100;

const whyBlocked = (circuit: Circuit, now: number): string =>
  `its circuit is ${stateName(circuit.state)} after ${circuit.failuresMs.length} failures, for at most another ${retryAt(circuit) - now} ms`;

function whyNot(agent: AgentRow, contract: ContractRow, more: readonly Objection[]): string | undefined {
  for (const objection of [...always, ...more]) {
    const why = objection(agent, contract);
    if (why !== undefined) return why;
  }
  return undefined;
}

/** Tiers count from 1, the most trusted, to 4. */
const always: readonly Objection[] = [
  (agent) => (agent.disabled !== 0 ? "disabled" : undefined),
  (agent) => (agent.endpoint === null ? "has no endpoint" : undefined),
  // What other organisations' servers say they can do must not draw work to them that is not theirs.
  (agent, { peer_id }) => {
    const peerId = peerIdOf(agent);
    return peerId !== undefined && peerId !== peer_id ? "asks another server, which does not offer this" : undefined;
  },
  ({ trust_tier }, { security_class }) =>
    trust_tier > security_class ? `its tier ${tierName(trust_tier)} is below ${tierName(security_class)}` : undefined,
  (agent, contract) => {
    const missing = missingTool(agent, contract);
    return missing === undefined ? undefined : `may not use the tool ${missing}`;
  },
];

/** The first tool that the work needs and the agent does not have. */
function missingTool(agent: AgentRow, contract: ContractRow): string | undefined {
  const allowed = new Set(JSON.parse(agent.allowed_tools) as string[]);
  return (JSON.parse(contract.required_tools) as string[]).find((tool) => !allowed.has(tool));
}

/** Each of these agents lacks a tool: POLICY_DENIED, told of the first. */
function toolless(usable: readonly Judged[], contract: ContractRow): Fault | undefined {
  const [first] = usable;
  const tool = first && missingTool(first.agent, contract);
  if (!tool || usable.some(({ agent }) => missingTool(agent, contract) === undefined)) return undefined;
  const { name, agent_id, hidden } = first.agent;
  const told = { policy_ids: "builtin/allowed-tools", tool };
  if (hidden)
    return new Fault(
      "POLICY_DENIED",
      `${somebody} may not use the tool ${tool}, which ${contract.contract_id} needs`,
      told,
    );
  const { hint, metadata } = howToAsk({ type: "Agent", id: agent_id }, "use_tool", { type: "Tool", id: tool });
  const message = `${name} may not use the tool ${tool}, which ${contract.contract_id} needs: add it to its allowed_tools with UpdateAgent. ${hint}`;
  return new Fault("POLICY_DENIED", message, { ...told, ...metadata, agent_id });
}

export const tierName = (tier: number): string => nameIn(TrustTier, tier);
