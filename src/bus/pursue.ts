/** One accepted task through its contracts, their agents and their attempts, in turn. */
import type { App } from "../app.ts";
import type { Slots } from "../egress/slots.ts";
import type { Fault } from "../errors.ts";
import { allowedContracts } from "../federation/gateway/still-granted.ts";
import { type AgentRow, endpointOf, pulls, urlOf } from "./agent-store.ts";
import {
  attemptOnce,
  deadlineFault,
  finalFault,
  LetGo,
  pastDeadline,
  type RefusedAttempt,
  type Run,
} from "./attempt.ts";
import { settleRejected } from "./begin.ts";
import { CircuitOpen } from "./circuit/conduct.ts";
import { type Blocked, circuitFault } from "./circuit/refusal.ts";
import { type ContractRef, type ContractRow, findContract } from "./contract-store.ts";
import { usableFallback } from "./fallback.ts";
import { followUp, nothingTried, type Tried } from "./retry.ts";
import { type Candidates, candidatesFor, stillFit } from "./route.ts";
import { parkTask } from "./serve/park.ts";
import { type FailedAttempt, settleAttemptFailed, settleFailed, settleFallback } from "./settle.ts";
import type { TaskFault, TaskRow } from "./task-store.ts";

/** What the work needs: the slots are those of the agents' places. */
export type Hands = { readonly app: App; readonly slots: Slots };

/** This contract gave nothing. Not set: the task has ended. */
type Failure = {
  readonly fault: TaskFault;
  /** The failed attempt, unless it is written down already or there was none. */
  readonly last?: FailedAttempt;
  readonly nextAllowed: boolean;
  /** Nothing was begun: policies refuse whoever is left. */
  readonly rejected?: boolean;
};

/** Where the work on a task goes on that an agent that pulls had: at a further attempt under this contract, or after it. */
export type Resume = {
  readonly contract: ContractRow;
  readonly tried: Tried;
  readonly waitMs: number;
  /** The contract gave nothing, for this; the failed attempt is written down. */
  readonly failure?: TaskFault;
  /** Nobody fetched it in the time it waited. */
  readonly unfetched?: boolean;
};

/** The task's contract, then its fallbacks in turn; ends the task. Goes on where `resume` says. */
export async function tryContracts(hands: Hands, run: Run, turn: number, resume?: Resume): Promise<void> {
  const { app, task } = run;
  const contract = await findContract(app.db.query, task.org_id, task.contract_id, task.contract_version);
  if (!contract) throw new Error(`contract ${task.contract_id}@${task.contract_version} of an accepted task is gone`);
  const wish = wishOf(run, turn);
  const begin = resume ?? { contract, tried: nothingTried(turn, 0), waitMs: 0 };
  let failure = await beginContract(hands, run, begin);
  const approved = task.approval_id !== "";
  for (const [index, ref] of (JSON.parse(contract.fallbacks) as ContractRef[]).entries()) {
    if (!failure?.nextAllowed || approved) break; // the approval was for this contract and this agent
    if (index < begin.tried.step) continue;
    const allows = await allowedContracts(app.db.query, task);
    const fallback = await usableFallback(app, app.db.query, { ...wish, allows, now: app.clock.now() }, ref);
    if (!fallback) continue;
    if (!(await settleFallback(app, run, fallback, failure.last))) throw new LetGo("no longer held");
    failure = await tryContract(hands, run, fallback.contract, fallback, nothingTried(turn, index + 1));
  }
  if (!failure) return;
  const { fault, last, rejected } = failure;
  const ended = rejected ? await settleRejected(app, run, fault) : await settleFailed(app, run, fault, last);
  if (!ended) throw new LetGo("no longer held");
}

/** The agent that was decided on goes first: those before it were refused by a policy. */
const decidedFirst = ({ candidates, ...rest }: Candidates, agentId: string): Candidates => {
  const { first = [], others = [] } = Object.groupBy(candidates, (one) =>
    one.agent_id === agentId ? "first" : "others",
  );
  return { candidates: [...first, ...others], ...rest };
};

/**
 * As it went on: those that were tried before it was left to an agent that pulls keep their places, whoever is there by now, so that none is gone back to, and the
 * next one is the best of the others.
 */
function resumed(found: Candidates, tried: Tried): { readonly found: Candidates; readonly tried: Tried } {
  const { passed = [] } = tried;
  const byId = new Map(found.candidates.map((agent) => [agent.agent_id, agent]));
  const gone = passed.slice(0, tried.agent).filter((id) => !byId.has(id)).length;
  const before = passed.flatMap((id) => byId.get(id) ?? []);
  const others = found.candidates.filter((agent) => !before.includes(agent));
  return {
    found: { ...found, candidates: [...before, ...others] },
    tried: { ...tried, agent: tried.agent - gone },
  };
}

/** The only agent that may do it: the one that was approved, or the one that the caller insists on. */
const boundAgent = (task: TaskRow): string => (task.approval_id ? task.target_agent_id : task.wanted_agent_id);

/** What the task asks of a contract. */
const wishOf = ({ task, input }: Run, turn: number) => ({
  orgId: task.org_id,
  input,
  wantedAgentId: boundAgent(task),
  callerAgentId: task.caller_agent_id,
  turn,
  taskId: task.task_id,
});

/** The contract with which the work begins or goes on. */
async function beginContract(hands: Hands, run: Run, begin: Resume): Promise<Failure | undefined> {
  const { app } = run;
  const { contract, waitMs } = begin;
  if (begin.failure) return { fault: begin.failure, nextAllowed: true };
  const query = { ...wishOf(run, begin.tried.turn), contract, now: app.clock.now() };
  const { found, tried } = resumed(await candidatesFor(app.db.query, query), begin.tried);
  if (begin.unfetched && tried.agent >= found.candidates.length)
    return { fault: notFetched(contract), nextAllowed: true };
  if (waitMs > 0) await app.clock.sleep(untilDeadline(run, waitMs), run.signal);
  return tryContract(hands, run, contract, decidedFirst(found, run.decidedAgentId), tried);
}

/**
 * Attempts by one contract, as {@link followUp} says. An agent whose circuit has opened meanwhile is passed over, as is one that policies
 * refuse. A task whose agent pulls is left to that agent.
 */
async function tryContract(
  hands: Hands,
  run: Run,
  contract: ContractRow,
  { candidates, blocked }: Candidates,
  from: Tried,
): Promise<Failure | undefined> {
  const { app } = run;
  const shut = new Map(blocked.map((one) => [one.agent.agent_id, one]));
  let refused: Fault | undefined;
  const nobody = (): Failure =>
    refused && shut.size === 0
      ? { fault: refused, nextAllowed: true, rejected: true }
      : { fault: nobodyLeft(app, contract, [...shut.values()]), nextAllowed: true };
  if (candidates.length === 0) return nobody();
  let tried = from;
  let gone = 0;
  for (;;) {
    const chosen = candidates[tried.agent % candidates.length]!;
    const release = await slotOf(hands, run, chosen);
    // Waiting can take long: the agent may have been changed, disabled or deleted meanwhile.
    const agent = await stillFit(app.db.query, chosen, contract);
    if (pastDeadline(run)) {
      release?.();
      return { fault: deadlineFault(run), nextAllowed: false };
    }
    const first = tried.agent === 0 && contract.contract_id === run.task.contract_id;
    const decided = first && chosen.agent_id === run.decidedAgentId;
    const passed = candidates.slice(0, tried.agent + 1).map(({ agent_id }) => agent_id);
    const last = await attemptUnlessShut(run, contract, agent, decided, { ...tried, passed }).finally(release);
    if (!last) return undefined;
    shut.delete(chosen.agent_id);
    if (last === "gone" || last instanceof CircuitOpen || "refused" in last) {
      if (last instanceof CircuitOpen) shut.set(chosen.agent_id, last);
      else if (last !== "gone") ({ refused } = last);
      if (++gone === candidates.length) return nobody();
      tried = { ...tried, agent: tried.agent + 1 };
      continue;
    }
    gone = 0;
    const { aftermath } = last.cause;
    const late = pastDeadline(run);
    const next = followUp({ aftermath, contract, tried, agents: candidates.length, late, chance: app.ids.chance });
    if (next.kind !== "again")
      return { fault: finalFault(run, contract, last), last, nextAllowed: next.kind === "next contract" };
    if (!(await settleAttemptFailed(app, run, last, next.waitMs))) throw new LetGo("no longer held");
    if (next.waitMs > 0) await app.clock.sleep(untilDeadline(run, next.waitMs), run.signal);
    tried = next.tried;
  }
}

/** The attempt, or why there was none. */
async function attemptUnlessShut(
  run: Run,
  contract: ContractRow,
  agent: AgentRow | undefined,
  decided: boolean,
  tried: Tried,
): Promise<FailedAttempt | RefusedAttempt | CircuitOpen | "gone" | undefined> {
  if (!agent) return "gone";
  if (pulls(agent)) {
    const parked = await parkTask(run.app, run, agent, contract, tried, decided);
    if (parked && "refused" in parked) return parked;
    throw new LetGo("left to an agent that pulls, ended, or no longer held");
  }
  try {
    return await attemptOnce(run, contract, agent, decided);
  } catch (error) {
    if (error instanceof CircuitOpen) return error;
    throw error;
  }
}

/** Waits until the agent's place takes one more, or undefined when the deadline came first. */
async function slotOf({ slots }: Hands, run: Run, agent: AgentRow): Promise<(() => void) | undefined> {
  const { app, signal } = run;
  const waiting = new AbortController();
  const timer = app.clock.after(untilDeadline(run, 2 ** 31 - 1), () => waiting.abort());
  try {
    return await slots.take(placeOf(agent), AbortSignal.any([signal, waiting.signal]));
  } catch (error) {
    signal.throwIfAborted();
    if (waiting.signal.aborted) return undefined;
    throw error;
  } finally {
    timer.cancel();
  }
}

/** Agents behind one server share it. */
function placeOf(agent: AgentRow): string {
  const endpoint = endpointOf(agent);
  return (endpoint && URL.parse(urlOf(endpoint)?.url ?? "")?.origin) ?? agent.agent_id;
}

/** So long, or as long as the deadline is away. */
const untilDeadline = ({ app, task }: Run, ms: number): number =>
  Math.max(0, Math.min(ms, (task.deadline_ms ?? Infinity) - app.clock.now()));

const notFetched = ({ capability }: ContractRow): TaskFault => ({
  reason: "AGENT_UNREACHABLE",
  message: `no instance of an agent with the capability ${capability} has fetched it with Serve; the work was not begun`,
  metadata: { capability },
});

function nobodyLeft(app: App, { capability }: ContractRow, shut: readonly Blocked[]): TaskFault {
  if (shut.length > 0) return circuitFault(shut, app.clock.now());
  return {
    reason: "NO_CAPABLE_AGENT",
    message: `no agent with the capability ${capability} is left`,
    metadata: { capability },
  };
}
