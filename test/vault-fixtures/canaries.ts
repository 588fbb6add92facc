/** Canaries: secrets that are planted through the API wherever it takes or makes payloads, and looked for wherever they could have been left. */
import { randomBytes } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { TaskSide } from "../../gen/moltwire/exchange/v1/marketplace_service_pb.ts";
import { type Db, raw, sql } from "../../src/db/db.ts";
import type { Adapter } from "../../src/server.ts";
import { contract, submit, whenEnded } from "../bus-fixtures/bus.ts";
import { post as offer, reject, result } from "../exchange-fixtures/market.ts";
import { type Org, unique, type World } from "../harness.ts";
import { json as entryJson } from "../memory-fixtures/memory.ts";
import { claim, json, leaseOf, submit as submitJob } from "../queue-fixtures/jobs.ts";
import { deliveriesWhen, hook, stateOf } from "../webhook-fixtures/hooks.ts";
import { receiver } from "../webhook-fixtures/receiver.ts";

/** By kind of payload. */
export type Canaries = Readonly<Record<string, string>>;

const kinds = [
  ...["memoryValue", "memoryBytes", "memoryDescription", "memoryTag", "memoryOverwritten", "sharedValue"],
  ...["jobPayload", "jobProgress", "jobError", "jobResult", "schedulePayload"],
  ...["messagePayload", "messageHeader", "channelPayload", "webhookAnswer", "webhookSecret", "contact"],
  ...["taskInput", "taskOutput", "taskError", "streamedPiece", "streamedProgress", "contractViolation"],
  ...["storedReply", "adapterSecret", "marketResult", "marketReason", "marketDispute"],
] as const;
type Kind = (typeof kinds)[number];

const newCanaries = () =>
  Object.fromEntries(kinds.map((kind) => [kind, `canary${randomBytes(9).toString("hex")}`])) as Record<Kind, string>;

/** The work of the agents that the canaries are planted with; by `say` of the input. */
export const canaryAdapter: Adapter = async (_endpoint, { input, chunk, progress }) => {
  const { say = "", fail = "", piece = "", message = "" } = input as Record<string, string>;
  if (piece) await chunk(piece);
  if (message) await progress(0.5, message);
  // What is told at once is coalesced.
  if (piece || message) await sleep(300);
  if (fail) throw new Error(fail);
  return { output: { said: say }, usage: { inputTokens: 1, outputTokens: 1, model: "m" } };
};

/** Plants one of each kind; the organisation is as it was before but for that. */
export async function plant(org: Org): Promise<Canaries> {
  const planted = newCanaries();
  const { as, agentId } = await org.agent();
  const bytes = { kind: { case: "data" as const, value: Buffer.from(planted.memoryBytes) } };
  await as.memory.setEntry({ write: { key: "bytes", value: bytes } });
  await as.memory.setEntry({ write: { key: "a", value: entryJson({ was: planted.memoryOverwritten }) } });
  await as.memory.setEntry({
    write: {
      key: "a",
      value: entryJson({ is: planted.memoryValue }),
      description: planted.memoryDescription,
      tags: [planted.memoryTag],
    },
  });
  await as.sharedMemory.publishSharedEntry({
    write: { namespace: unique("shared"), key: "k", value: entryJson(planted.sharedValue) },
  });

  await using endpoint = await receiver((response) => response.end(planted.webhookAnswer));
  // Base64 of 24 bytes, as it is stored.
  const { webhookId } = await hook(as, endpoint.url, { secret: `whsec_${planted.webhookSecret}${"A".repeat(8)}` });
  await as.relay.send({
    to: { case: "toAgentId", value: agentId },
    payload: json(planted.messagePayload),
    headers: { it: planted.messageHeader },
  });

  const queue = unique("q");
  const backoff = { initial: { seconds: 0n, nanos: 1_000_000 } };
  await submitJob(as, { queue, payload: json(planted.jobPayload), maxAttempts: 1, backoff });
  const [failing] = await claim(as, { queues: [queue] });
  await as.queues.heartbeatJob({
    ...leaseOf(failing!),
    progress: { fraction: 0.5, details: { at: planted.jobProgress } },
  });
  await as.queues.failJob({ ...leaseOf(failing!), error: { code: "bad", message: planted.jobError } });
  await submitJob(as, { queue });
  const [done] = await claim(as, { queues: [queue] });
  await as.queues.completeJob({ ...leaseOf(done!), result: json(planted.jobResult) });

  await as.schedules.createSchedule({
    settings: { timing: { cron: "@yearly" }, job: { payload: json(planted.schedulePayload) } },
  });

  const channel = unique("channel");
  await as.relay.createChannel({ name: channel });
  await as.relay.createConsumerGroup({ channel, name: "readers", maxDeliveries: 1 });
  await as.relay.send({ to: { case: "toChannel", value: channel }, payload: json(planted.channelPayload) });
  const { messages } = await as.relay.pullMessages({ channel, group: "readers" });
  await as.relay.nackMessages({ channel, group: "readers", ackIds: [messages[0]!.ackId] });

  const said = { subject: "hello", message: planted.contact, email: "a@example.org", name: "A" };
  await org.admin.contacts.submitContact(said);

  const { taskId: offered } = await offer(org.admin);
  await as.market.claimTask({ taskId: offered });
  await as.market.deliverTask({ taskId: offered, result: result(planted.marketResult) });
  await reject(org.admin, offered, planted.marketReason);
  await as.market.disputeTask({ taskId: offered, reason: planted.marketDispute });

  await org.admin.policies.putPolicy({
    policyId: "all",
    cedarText: "permit (principal, action, resource);",
  });
  const contractId = await contract(org);
  await org.agent({
    name: unique("worker"),
    capabilities: [contractId],
    endpoint: { kind: { case: "custom", value: { adapter: "canary" } } },
    breaker: { disabled: true },
  });
  await submit(as, contractId, {
    input: {
      it: planted.taskInput,
      say: planted.taskOutput,
      piece: planted.streamedPiece,
      message: planted.streamedProgress,
    },
  });
  const failed = await submit(as, contractId, { input: { fail: planted.taskError } });
  await whenEnded(as, failed.taskId);
  const headers = { "idempotency-key": unique("key") };
  await submit(as, contractId, { input: { say: planted.storedReply } }, { headers });

  const outputSchema = { type: "object", properties: { said: { const: 1 } } };
  const strict = await contract(org, { outputSchema, capability: contractId });
  await submit(as, strict, { input: { say: planted.contractViolation } });

  await org.agent({
    endpoint: {
      kind: {
        case: "openai",
        value: {
          baseUrl: "https://models.example/v1",
          model: "m",
          credential: { case: "apiKey", value: planted.adapterSecret },
        },
      },
    },
  });
  await deliveriesWhen(as, webhookId, (all) => all.length > 0 && all.every((one) => stateOf(one) === "DELIVERED"));
  return planted;
}

/** The kinds of canaries that are found in a text. */
export const found = (canaries: Canaries, text: string): string[] =>
  Object.entries(canaries)
    .filter(([, canary]) => text.includes(canary))
    .map(([kind]) => kind);

/** All that the files of a folder hold. */
export const filesOf = (folder: string): string =>
  readdirSync(folder)
    .map((file) => readFileSync(join(folder, file)).toString("latin1"))
    .join("\n");

/** All that the tables of a PostgreSQL database hold. */
export async function tablesOf(db: Db): Promise<string> {
  const columns = await db.query.all<{ table_name: string; column_name: string }>(sql`
    select table_name, column_name from information_schema.columns where table_schema = 'public' order by table_name`);
  const texts: string[] = [];
  for (const { table_name, column_name } of columns) {
    const rows = await db.query.all<{ it: unknown }>(
      sql`select ${raw(`"${column_name}"`)} as it from ${raw(`"${table_name}"`)}`,
    );
    for (const { it } of rows) texts.push(it instanceof Uint8Array ? Buffer.from(it).toString("latin1") : String(it));
  }
  return texts.join("\n");
}

/**
 * The kinds of canaries that are in the files of a PostgreSQL database and in its log of writes, after a checkpoint; undefined where the server's folder is not to be
 * read from here.
 */
export async function foundInFiles({ query }: Db, canaries: Canaries): Promise<string[] | undefined> {
  await query.all(sql`checkpoint`);
  const at = await query.one<{ data_directory: string }>(sql`show data_directory`);
  const database = await query.one<{ oid: string }>(
    sql`select oid::text as oid from pg_database where datname = current_database()`,
  );
  const folders = [join("base", database!.oid), "pg_wal"].map((folder) => join(at!.data_directory, folder));
  const kinds = new Set<string>();
  for (const folder of folders) {
    const files = listOrNone(folder);
    if (!files) return undefined;
    for (const file of files)
      for (const kind of found(canaries, readFileSync(join(folder, file)).toString("latin1"))) kinds.add(kind);
  }
  return [...kinds];
}

function listOrNone(folder: string): string[] | undefined {
  try {
    return readdirSync(folder, { withFileTypes: true }).flatMap((entry) => (entry.isFile() ? [entry.name] : []));
  } catch {
    return undefined;
  }
}

/** What is read back, of each kind that a reader is given, to be sure that it was not lost. */
export async function readBack(world: World, org: Org): Promise<string> {
  const { admin } = org;
  const { agents } = await admin.agents.listAgents({});
  const seen: unknown[] = [];
  for (const { agentId } of agents) {
    const { entries } = await admin.memory.listEntries({ agentId, withValues: true });
    seen.push(entries);
    for (const { key, namespace } of entries)
      seen.push((await admin.memory.getEntry({ agentId, key, namespace })).entry);
  }
  const { jobs } = await admin.queues.listJobs({ states: [4, 5] });
  for (const { jobId } of jobs) seen.push(await admin.queues.getJob({ jobId }));
  const { schedules } = await admin.schedules.listSchedules({});
  for (const { scheduleId } of schedules) seen.push(await admin.schedules.getSchedule({ scheduleId }));
  const { tasks } = await admin.bus.listTasks({});
  for (const { taskId, traceId } of tasks) {
    seen.push(await admin.bus.getTask({ taskId }), await admin.traces.getTrace({ traceId }));
    for await (const message of admin.bus.watchTask({ taskId })) seen.push(message);
  }
  for (const { agentId } of agents) seen.push((await admin.relay.listInbox({ agentId })).messages);
  for (const { name } of (await admin.relay.listChannels({})).channels)
    seen.push(await admin.relay.listMessages({ channel: name }), await admin.relay.listDeadMessages({ channel: name }));
  for (const { agentId } of agents)
    for (const { webhookId } of (await admin.webhooks.listWebhooks({ agentId })).webhooks)
      for (const { eventId } of (await admin.webhooks.listDeliveries({ webhookId })).deliveries)
        seen.push(await admin.webhooks.getDelivery({ webhookId, eventId }));
  for (const { taskId } of (await admin.market.listTasks({ side: TaskSide.CREATOR })).tasks)
    seen.push(await admin.market.getTask({ taskId }));
  seen.push((await world.operator.contacts.listContacts({})).contacts);
  seen.push(
    await admin.policies.listDecisions({}),
    await admin.events.listEvents({}),
    await admin.deadLetters.listDeadLetters({}),
  );
  seen.push(world.server.app.vault.encrypts);
  return JSON.stringify(seen, (_key, it: unknown) =>
    typeof it === "bigint" ? String(it) : it instanceof Uint8Array ? Buffer.from(it).toString("latin1") : it,
  );
}
