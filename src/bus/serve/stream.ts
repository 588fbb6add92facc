/** One open stream of Serve: revocations first, then as many tasks as there is room for, then wait for the bell. */
import { create, fromJson, type MessageInitShape } from "@bufbuild/protobuf";
import { durationFromMs, timestampFromMs, ValueSchema } from "@bufbuild/protobuf/wkt";
import type { ServeResponseSchema } from "../../../gen/moltwire/bus/v1/bus_service_pb.ts";
import { TaskDeliverySchema } from "../../../gen/moltwire/bus/v1/bus_service_pb.ts";
import type { App } from "../../app.ts";
import { empty, type Queryable, type Sql, sql } from "../../db/db.ts";
import { dropLease, type Lease, takeLease } from "../../lease.ts";
import { traceparent } from "../../rpc/trace-context.ts";
import { servingName } from "../agent-store.ts";
import { endedByAgent } from "../attempt-store.ts";
import type { Dispatcher } from "../dispatch.ts";
import { openJson } from "../task-store.ts";
import { type Claimed, claimTasks, giveBack, maxClaimed, supplanted } from "./claim.ts";
import { leaseToken } from "./lease-token.ts";
import { hasWaiting, heldBy, type Instance, instanceTopic, workTopic } from "./pulled-store.ts";
import { sweepPulled } from "./sweep.ts";

/** Throws when the stream may not go on; with `forUpdate` it stays so until the transaction ends. */
type Check = (db: Queryable, lock: Sql) => Promise<void>;
type Message = MessageInitShape<typeof ServeResponseSchema>;

const checkpointMs = 15_000;

/**
 * Streams until the signal aborts. The table is the truth: which tasks the instance has and how many, is read there each time, so that it does not matter through
 * which replica they were answered. A bell says when to look; it can be lost with a connection, and the checkpoints look too.
 */
export async function* serveStream(
  app: App,
  dispatcher: Dispatcher,
  instance: Instance,
  named: boolean,
  signal: AbortSignal,
): AsyncGenerator<Message> {
  const check: Check = named ? await speakFor(app, instance) : async () => {};
  const presence = instance.capacity > 0 ? presenceOf(app, instance) : undefined;
  try {
    yield* serveInstance(app, dispatcher, instance, { check, signal, beat: async () => presence?.beat() });
  } finally {
    await presence?.end();
  }
}

/** What an open stream does beside its tasks. */
type Conduct = {
  readonly check: Check;
  readonly signal: AbortSignal;
  /** Called as often as it looks for work, and at least every {@link checkpointMs}. */
  readonly beat: () => Promise<void>;
};

async function* serveInstance(
  app: App,
  dispatcher: Dispatcher,
  instance: Instance,
  { check, signal, beat }: Conduct,
): AsyncGenerator<Message> {
  const bell = app.db.listen([workTopic(instance), instanceTopic(instance)], signal);
  const held = new Map((await heldBy(app.db.query, instance)).map(({ task_id, attempt }) => [task_id, attempt]));
  let toldMs = app.clock.now();
  for (;;) {
    signal.throwIfAborted();
    await check(app.db.query, empty);
    await beat();
    for (const taskId of await revoked(app, instance, held)) {
      yield { event: { case: "revokedTaskId", value: taskId } };
      toldMs = app.clock.now();
    }
    if (instance.capacity === 0 && held.size === 0) return;
    const claimed = held.size < instance.capacity ? await claim(app, dispatcher, instance, check) : [];
    if (claimed.length > 0) {
      yield* deliver(app, instance, claimed, held, signal);
      toldMs = app.clock.now();
      if (claimed.length >= maxClaimed) continue;
    }
    const leftMs = toldMs + checkpointMs - app.clock.now();
    if (leftMs > 0 && (await bell.wait(leftMs, signal))) continue;
    yield { event: { case: "checkpoint", value: timestampFromMs(app.clock.now()) } };
    toldMs = app.clock.now();
  }
}

/** How long an instance is believed to be there when its server is gone. */
const presentMs = 3 * checkpointMs;

/** Says that the agent is there, by a lease, so that routing prefers it to those that are not. */
function presenceOf(app: App, { orgId, agentId, name }: Instance) {
  const leaseName = servingName(orgId, agentId, name);
  let lease: Lease | undefined;
  let beatenMs = 0;
  return {
    async beat(): Promise<void> {
      const now = app.clock.now();
      if (lease && now < beatenMs + checkpointMs) return;
      lease = await app.db.tx((tx) => takeLease(tx, leaseName, `instance ${name}`, now, presentMs));
      beatenMs = now;
    },
    async end(): Promise<void> {
      const last = lease;
      if (!last) return;
      await app.db
        .tx((tx) => dropLease(tx, last))
        .catch((error: unknown) =>
          app.log.warn({ err: error, agent_id: agentId }, "an end was not noted: it ends by itself"),
        );
    },
  };
}

/**
 * A name has one stream: the one opened last. Gives the check, in a transaction, that this is it; an older one, whose connection may be dead, is told by the bell
 * and takes nothing more.
 */
async function speakFor(app: App, { orgId, agentId, name }: Instance): Promise<Check> {
  const leaseName = `serve:${orgId}:${agentId}:${name}`;
  const { token, untilMs } = await app.db.tx(async (tx) => {
    tx.ring(instanceTopic({ orgId, agentId, name }));
    // It is over as soon as it is taken: token and time tell the newest stream. Old leases are deleted, after which tokens begin anew.
    return (await takeLease(tx, leaseName, `instance ${name}`, app.clock.now(), 0))!;
  });
  return async (db, lock) => {
    const newest = await db.one<{ token: number; until_ms: number }>(
      sql`select token, until_ms from lease where name = ${leaseName} ${lock}`,
    );
    if (newest && (newest.token !== token || newest.until_ms !== untilMs)) throw supplanted();
  };
}

/** The tasks that the instance has no more and did not answer itself. */
async function revoked(app: App, instance: Instance, held: Map<string, number>): Promise<string[]> {
  if (held.size === 0) return [];
  const now = new Map((await heldBy(app.db.query, instance)).map(({ task_id, attempt }) => [task_id, attempt]));
  const gone: string[] = [];
  for (const [taskId, attempt] of held) {
    if (now.get(taskId) === attempt) continue;
    held.delete(taskId);
    if (!(await endedByAgent(app, app.db.query, { orgId: instance.orgId, taskId, attempt }))) gone.push(taskId);
  }
  return gone;
}

/** Before anything is claimed, what ran out is made ready to be. */
async function claim(app: App, dispatcher: Dispatcher, instance: Instance, check: Check): Promise<Claimed[]> {
  await sweepPulled(app, dispatcher, instance);
  return (await hasWaiting(app.db.query, instance, app.clock.now())) ? claimTasks(app, instance, check) : [];
}

/** What did not leave the server, because the stream ended, waits again. */
async function* deliver(
  app: App,
  instance: Instance,
  claimed: readonly Claimed[],
  held: Map<string, number>,
  signal: AbortSignal,
): AsyncGenerator<Message> {
  const unsent = [...claimed];
  try {
    for (const one of claimed) {
      signal.throwIfAborted();
      const { task_id: taskId, attempt } = one.row;
      // The lease of an earlier delivery ran out unseen: it is over before the new one begins.
      if (held.has(taskId)) yield { event: { case: "revokedTaskId", value: taskId } };
      signal.throwIfAborted();
      held.set(taskId, attempt);
      const message = toDelivery(app, instance, one);
      unsent.shift();
      yield message;
    }
  } finally {
    for (const one of unsent)
      await giveBack(app, one).catch((error: unknown) =>
        app.log.warn({ err: error, task_id: one.row.task_id }, "a task that was not sent waits for its lease to end"),
      );
  }
}

function toDelivery(app: App, { orgId, agentId }: Instance, { task, row, contract }: Claimed): Message {
  const { task_id: taskId, token } = row;
  const delivery = create(TaskDeliverySchema, {
    task: {
      taskId,
      attempt: row.attempt,
      contractId: contract.contract_id,
      contractVersion: contract.version,
      capability: contract.capability,
      input: fromJson(ValueSchema, openJson(app, orgId, taskId, "input", task.input)),
      deadlineTime: timestampFromMs(row.stop_ms),
      traceparent: traceparent({ traceId: task.trace_id, spanId: task.span_id }),
      maxTokens: BigInt(contract.max_tokens),
    },
    leaseToken: leaseToken(app, orgId, taskId, { agentId, token }),
    leaseExpireTime: timestampFromMs(row.lease_until_ms),
    lease: durationFromMs(row.lease_ms),
  });
  return { event: { case: "delivery", value: delivery } };
}
