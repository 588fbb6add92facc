import type { JsonObject, JsonValue } from "@bufbuild/protobuf";
import { PolicyVerdict } from "../../gen/moltwire/bus/v1/policy_pb.ts";
import { TraceEventKind } from "../../gen/moltwire/bus/v1/trace_pb.ts";
import type { App } from "../app.ts";
import type { Queryable } from "../db/db.ts";
import { Fault, notFound } from "../errors.ts";
import { type AgentRow, findAgent, pulls } from "./agent-store.ts";
import type { Demand } from "./approval/gate.ts";
import { type Blocked, circuitRefusal } from "./circuit/refusal.ts";
import type { ContractRef, ContractRow } from "./contract-store.ts";
import { type Fallback, usableFallback } from "./fallback.ts";
import { jsonBytes, jsonFault } from "./payload.ts";
import { type Permit, permit, policyStep } from "./permit.ts";
import type { Decided, Origin } from "./policy/decide-task.ts";
import type { AgentFacts } from "./policy/entity.ts";
import { resolveContract } from "./resolve.ts";
import { type Route, type Ruling, route } from "./route.ts";
import type { Violation } from "./schema/schema.ts";
import type { Step } from "./trace-store.ts";
import { inputViolations } from "./violations.ts";

/** What is asked for. */
export type Wish = {
  readonly orgId: string;
  readonly contract: ContractRef;
  readonly input: JsonValue;
  readonly wantedAgentId: string;
  /** The agent that asks; empty: an administrator, for no agent. */
  readonly callerAgentId: string;
  readonly origin: Origin;
  readonly grantId: string;
  /** Where it comes from, if that is another organisation, and the agent there as this one sees it; see `callerAgentId`. */
  readonly from?: { readonly orgId: string; readonly caller: AgentFacts | undefined };
  /** Which contracts may stand in for this one; not set: any. */
  readonly allows?: (contract: ContractRow) => boolean;
};

/** The decision on a wish: the steps taken to it, and either the contract and first agent, or the refusal. */
export type Decision = { readonly steps: readonly Step[] } & (
  | {
      readonly contract: ContractRow;
      /** Under which it is to be done: the same, or a fallback of it. */
      readonly doneUnder: ContractRow;
      readonly targetAgentId: string;
      /** Who asks for an approval first, if anybody does. */
      readonly demand: Demand | undefined;
      /** The agents of which the task has to be the one that tries them, if the circuits of all that can are open and there are no fallbacks. */
      readonly toProbe: readonly AgentRow[];
      readonly refusal?: undefined;
    }
  | { readonly refusal: Fault }
) & {
    /** What policies said, for the decision log. */
    readonly decisions: readonly Decided[];
    /** The same all in all; UNSPECIFIED: they were not asked. A refusal need not be theirs. */
    readonly verdict: PolicyVerdict;
  };

/** Whatever a step of the decision needs to read and to write down. */
type Deciding = {
  readonly app: App;
  readonly db: Queryable;
  readonly wish: Wish;
  readonly now: number;
  readonly turn: number;
  readonly add: (kind: TraceEventKind, message: string, details: JsonObject, targetAgentId?: string) => void;
};

/**
 * The pipeline up to acceptance: input within limits → contract → input against its schema → agents → policy. It only reads, so that
 * `validate_only` and the accepting transaction share it.
 */
export async function decide(app: App, db: Queryable, wish: Wish, now: number, turn: number): Promise<Decision> {
  const steps: Step[] = [];
  const add: Deciding["add"] = (kind, message, details, targetAgentId) =>
    steps.push({ kind, timeMs: now, message, details, ...(targetAgentId && { targetAgentId }) });
  const deciding: Deciding = { app, db, wish, now, turn, add };
  const decisions: Decided[] = [];
  let permitted: Permit | undefined;
  try {
    checkSize(deciding);
    const contract = await checkContract(deciding);
    checkInput(deciding, contract);
    const choice = await chooseAgents(deciding, contract);
    permitted = await askPolicies(deciding, contract, choice);
    decisions.push(...permitted.decisions);
    if (permitted.refusal) throw permitted.refusal;
    const { agent, demand } = permitted;
    // An approval holds for one contract and one agent of it.
    if (demand && choice.blocked.length > 0 && choice.contract !== contract) throw circuitRefusal(choice.blocked, now);
    const toProbe = demand ? [] : probesFrom(agent, choice);
    const verdict = verdictOf(permitted);
    const chosen = { contract, doneUnder: choice.contract, targetAgentId: agent.agent_id };
    return { steps, decisions, verdict, ...chosen, demand, toProbe };
  } catch (error) {
    if (!(error instanceof Fault)) throw error;
    steps.push(refusedStep(error, now));
    return { steps, decisions, verdict: verdictOf(permitted), refusal: error };
  }
}

function verdictOf(permitted: Permit | undefined): PolicyVerdict {
  if (!permitted) return PolicyVerdict.UNSPECIFIED;
  if (permitted.refusal) return PolicyVerdict.DENY;
  return permitted.demand ? PolicyVerdict.REQUIRE_APPROVAL : PolicyVerdict.ALLOW;
}

/**
 * The agents of which the task may reserve the probe: none that policies keep from it, as they do those before the one that they let do it, and none
 * when it waits to be pulled. What waits for an approval reserves none either, so that it keeps nobody from trying an agent meanwhile.
 */
const probesFrom = (agent: AgentRow, { candidates, toProbe }: Choice): AgentRow[] =>
  pulls(agent) ? [] : toProbe.filter((one) => candidates.indexOf(one) >= candidates.indexOf(agent));

/** The step by which a task is refused. */
export const refusedStep = ({ reason, message, metadata }: Fault, timeMs: number): Step => ({
  kind: TraceEventKind.REFUSED,
  timeMs,
  message,
  details: { reason, message, ...metadata },
});

const checkSize = ({ wish, add }: Deciding): void => checkInputSize(wish, add);

/** Notes what is asked for; PAYLOAD_TOO_LARGE when its input is beyond the limits of all inputs. */
export function checkInputSize(wish: Pick<Wish, "contract" | "input">, add: Deciding["add"]): void {
  const { contractId, version } = wish.contract;
  const fault = jsonFault(wish.input);
  const details = {
    contract_id: contractId,
    requested_version: version,
    ...(!fault && { input_bytes: jsonBytes(wish.input) }),
  };
  add(TraceEventKind.SUBMITTED, `asked for ${contractId}${version && `@${version}`}`, details);
  if (!fault) return;
  const metadata = { field: "input", limit: String(fault.limit), actual: String(fault.actual) };
  throw new Fault("PAYLOAD_TOO_LARGE", `input: ${fault.message}`, metadata, {
    fields: [{ field: "input", description: fault.message }],
  });
}

async function checkContract({ db, wish }: Deciding): Promise<ContractRow> {
  const contract = await resolveContract(db, wish.orgId, wish.contract);
  const { contract_id, version } = contract;
  if (contract.deprecate_ms !== null) {
    const metadata = { field: "contract_version", contract_id, contract_version: version };
    throw new Fault("CONTRACT_DEPRECATED", `${contract_id}@${version} is deprecated and takes no new tasks`, metadata);
  }
  return contract;
}

function checkInput({ app, wish, add }: Deciding, contract: ContractRow): void {
  const violations = inputViolations(app, contract, wish.input);
  const passed = violations.length === 0;
  const message = passed ? "the input fits the contract" : `the input breaks the contract: ${violations[0]!.message}`;
  add(TraceEventKind.INPUT_CHECKED, message, {
    contract_version: contract.version,
    violations: violations.map(({ path, keyword, message: what }) => ({ path, keyword, message: what })),
  });
  if (!passed) throw violationFault("input", violations, contract);
}

/** A payload breaks its schema: every field that is wrong, as `input.query`. */
export function violationFault(
  direction: "input" | "output",
  violations: readonly Violation[],
  contract: ContractRow,
): Fault {
  const fields = violations.map(({ path, keyword, message }) => ({
    field: fieldName(direction, path),
    description: message,
    reason: keyword,
  }));
  const first = fields[0]!;
  const metadata = {
    direction,
    field: first.field,
    keyword: first.reason,
    contract_id: contract.contract_id,
    contract_version: contract.version,
  };
  return new Fault("CONTRACT_VIOLATION", `${first.field}: ${first.description}`, metadata, { fields });
}

const fieldName = (direction: string, path: string): string =>
  path === "" || path.startsWith("[") ? direction + path : `${direction}.${path}`;

/** Who may do it, in the order in which they are tried, under which contract, and whom only an open circuit keeps from it. */
type Choice = {
  readonly contract: ContractRow;
  readonly candidates: readonly [AgentRow, ...AgentRow[]];
  readonly blocked: readonly Blocked[];
  readonly toProbe: readonly AgentRow[];
  /** What became of the contract's own agents and, where they are those, of its fallback's. */
  readonly own: Route;
  readonly fallback: Fallback | undefined;
};

/** The contract's own agents; those of a fallback if nothing but open circuits keeps the former from it. */
async function chooseAgents(deciding: Deciding, contract: ContractRow): Promise<Choice> {
  const { db, wish, now, turn, add } = deciding;
  const { orgId, wantedAgentId, callerAgentId } = wish;
  if (wantedAgentId && !(await findAgent(db, orgId, wantedAgentId))) throw notFound("agent", wantedAgentId);
  const found = await route(db, { orgId, contract, wantedAgentId, callerAgentId, turn, now });
  const { candidates, blocked, considered, toolless } = found;
  const { capability } = contract;
  const fallback = candidates.length === 0 && blocked.length > 0 ? await firstFallback(deciding, contract) : undefined;
  const [first, ...others] = candidates.length > 0 ? candidates : (fallback?.candidates ?? []);
  // Where there are fallbacks, those that may not try the agent go to them.
  // Tasks for agents that pull wait, and the first to be fetched tries it.
  const toProbe = contract.fallbacks === "[]" ? found.toProbe.filter((agent) => !pulls(agent)) : [];
  if (first) {
    const chosen = { contract: fallback?.contract ?? contract, candidates: [first, ...others] } as const;
    return { ...chosen, blocked, toProbe, own: found, fallback };
  }
  const verdicts = found.verdicts();
  const message = `nobody can${blocked.length > 0 ? " now" : ""}: ${considered} with the capability ${capability}`;
  add(TraceEventKind.ROUTED, message, { capability, considered, candidates: verdicts });
  if (toolless) throw toolless;
  if (blocked.length > 0) throw circuitRefusal(blocked, now);
  const lacking = wantedAgentId
    ? "the one that is wanted has not got it"
    : "give it to one with UpdateAgent or RegisterAgent";
  const advice = considered === 0 ? lacking : found.objections.join("; ");
  const metadata = {
    field: wantedAgentId ? "target_agent_id" : "contract_id",
    capability,
    considered: String(considered),
  };
  throw new Fault("NO_CAPABLE_AGENT", `no agent with the capability ${capability} can do it: ${advice}`, metadata);
}

async function firstFallback(
  { app, db, wish, now, turn }: Deciding,
  { fallbacks }: ContractRow,
): Promise<Fallback | undefined> {
  for (const ref of JSON.parse(fallbacks) as ContractRef[]) {
    const fallback = await usableFallback(app, db, { ...wish, turn, now }, ref);
    if (fallback) return fallback;
  }
  return undefined;
}

/** Policies, on the caller and on the tools of whoever would do the work. Whom it is routed to is known by then, and told before what they said. */
async function askPolicies(
  { app, db, wish, now, add }: Deciding,
  { capability }: ContractRow,
  choice: Choice,
): Promise<Permit> {
  const { orgId, callerAgentId, origin, grantId, from } = wish;
  const own = callerAgentId && !from ? await findAgent(db, orgId, callerAgentId) : undefined;
  if (callerAgentId && !from && !own) throw notFound("agent", callerAgentId);
  const caller = from ? from.caller : own;
  const asking = { orgId, caller, from: from?.orgId, contract: choice.contract, origin, grantId, now };
  const permitted = await permit(app, db, asking, choice.candidates);
  const agent = permitted.refusal ? undefined : permitted.agent;
  const routed = routedStep(choice, { permitted: agent, refusedBy: permitted.refusedBy });
  add(TraceEventKind.ROUTED, routed.message, { capability, ...routed.details }, agent?.agent_id);
  const { message, details } = policyStep(permitted);
  add(TraceEventKind.POLICY_DECIDED, message, details, agent?.agent_id);
  return permitted;
}

/** What the trace says of who does it, and why not the others. */
function routedStep({ own, fallback, candidates }: Choice, ruling: Ruling) {
  const { contract_id, version = "" } = fallback?.contract ?? {};
  const under = fallback ? ` under ${contract_id}@${version}` : "";
  const message = ruling.permitted
    ? `${ruling.permitted.name} will do it${under}`
    : `policies let none of ${candidates.length} do it${under}`;
  const details: JsonObject = { considered: own.considered, candidates: own.verdicts(fallback ? undefined : ruling) };
  if (fallback) {
    const { considered, verdicts } = fallback;
    details.fallback = {
      contract_id: contract_id!,
      contract_version: version,
      considered,
      candidates: verdicts(ruling),
    };
  }
  return { message, details };
}
