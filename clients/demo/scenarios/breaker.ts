/** A circuit breaker: an agent that fails is left alone, then tried by one task, and then has work again. */
import { setTimeout as delay } from "node:timers/promises";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { ErrorReason } from "../../../gen/moltwire/api/v1/error_reason_pb.ts";
import { CircuitStateSchema } from "../../../gen/moltwire/bus/v1/agent_pb.ts";
import { AgentService } from "../../../gen/moltwire/bus/v1/agent_service_pb.ts";
import { TaskState } from "../../../gen/moltwire/bus/v1/task_pb.ts";
import { nameIn } from "../../cli/names.ts";
import { span } from "../../cli/output.ts";
import { ask, outputOf } from "../ask.ts";
import { claim, refused, same } from "./claim.ts";
import { addFlaky } from "./flaky-agent.ts";
import type { Outcome, World } from "./scenario.ts";

const failureThreshold = 3;
const openMs = 1_000;
const callers = 8;
const maxWaitMs = 5_000;
/** A timer may ring a little early, and the server's clock is read at another moment. */
const earlyMs = 10;
const input = { text: "are you there" };

/** Has an agent fail until its circuit opens, and come back. */
export async function breaker(world: World): Promise<Outcome> {
  const { admin, planner } = world;
  const settings = { breaker: { failureThreshold, openDuration: durationFromMs(openMs) } };
  const agent = await addFlaky(world, "breaker", { retryPolicy: { maxRetries: 0 } }, settings);
  const { agentId, contractId, behave, calls } = agent;
  const circuit = async () => {
    const { state, failureCount } = (await admin(AgentService).getAgent({ agentId })).agent!.circuit!;
    return [nameIn(CircuitStateSchema, state), failureCount];
  };
  const once = () => ask(planner, contractId, input);

  await behave("down");
  for (let failure = 1; failure <= failureThreshold; failure++) {
    const { state, error } = await once();
    same("a task of an agent that is down", [state, error?.reason], [TaskState.FAILED, ErrorReason.ADAPTER_ERROR]);
  }
  same("the circuit after the failures", await circuit(), ["OPEN", failureThreshold]);
  const began = performance.now();
  const { retryMs = 0 } = await refused("CIRCUIT_OPEN", once());
  const fast = span(performance.now() - began);
  claim(retryMs > 0 && retryMs <= openMs, `the retry time is ${retryMs} ms, and the circuit opens for ${openMs} ms`);
  same("calls of the agent while its circuit is open", await calls(), failureThreshold);

  await behave("held");
  await delay(retryMs + earlyMs);
  const { tasks, othersRefused } = rush(once);
  await Promise.race([othersRefused, tooLate()]);
  same("the circuit while one task tries the agent", await circuit(), ["HALF_OPEN", failureThreshold]);
  same("calls of the agent while it is tried", await atLeast(failureThreshold + 1, calls), failureThreshold + 1);
  await behave("up");
  const [probe] = await tasks;
  outputOf(probe!);
  same("the circuit after a success", await circuit(), ["CLOSED", 0]);
  const after = await Promise.all(Array.from({ length: callers }, once));
  for (const task of after) outputOf(task);
  same("calls of the agent that is back", await calls(), failureThreshold + 1 + callers);
  return {
    proof: `${failureThreshold} failures opened it; then CIRCUIT_OPEN in ${fast}, retry in ${span(retryMs)}, agent not called; after that 1 of ${callers} callers tried it and ${callers - 1} were refused; closed, and ${after.length} of ${callers} passed`,
    traceId: probe!.traceId,
  };
}

/** How many calls there were, once there were as many, or the time is over: the one that tries may still be on its way when the others are refused. */
async function atLeast(wanted: number, calls: () => Promise<number>): Promise<number> {
  const endMs = performance.now() + maxWaitMs;
  for (;;) {
    const count = await calls();
    if (count >= wanted || performance.now() > endMs) return count;
    await delay(earlyMs);
  }
}

/** Many callers at once, of whom all but one must be refused while that one waits. */
function rush(once: () => ReturnType<typeof ask>) {
  const { promise: othersRefused, resolve, reject } = Promise.withResolvers<void>();
  let count = 0;
  const one = async () => {
    const task = once();
    const passed = await task.then(
      (done) => done,
      () => undefined,
    );
    if (passed) return passed;
    await refused("CIRCUIT_OPEN", task);
    if (++count === callers - 1) resolve();
    return undefined;
  };
  const tasks = Promise.all(Array.from({ length: callers }, one)).then((all) =>
    all.filter((task) => task !== undefined),
  );
  tasks.catch(reject);
  othersRefused.catch(() => {});
  return { tasks, othersRefused };
}

async function tooLate(): Promise<never> {
  await delay(maxWaitMs, undefined, { ref: false });
  throw new Error(`while one caller tried the agent, not all of the ${callers - 1} others were refused`);
}
