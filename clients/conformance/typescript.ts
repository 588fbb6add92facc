/** What every client does, by the one for TypeScript; see README.md. */
import { createInterface } from "node:readline";
import { setTimeout } from "node:timers/promises";
import { createClient, type Interceptor } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-web";
import { MemoryService } from "../../gen/moltwire/memory/v1/memory_service_pb.ts";
import { connect, contentOf, MoltwireError, TaskError } from "../typescript/index.ts";

const { env } = process;
const apiKey = env.MOLTWIRE_API_KEY!;
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const print = (line: object) => console.log(JSON.stringify(line));

/** Waits until something happened to the server. */
async function want(name: string, wants: string): Promise<void> {
  print({ case: name, wants });
  await lines.next();
}

async function failed(call: Promise<unknown>): Promise<MoltwireError> {
  try {
    await call;
  } catch (error) {
    if (error instanceof MoltwireError) return error;
    throw error;
  }
  throw new Error("the call was expected to fail");
}

const mw = connect();
const stop = new AbortController();
const serving = mw.bus.serve(
  ({ input }) => {
    const { text } = input as { text?: string };
    if (!text) throw new TaskError("there is no text to shout", { retryable: false });
    return { shouted: text.toUpperCase() };
  },
  { signal: stop.signal },
);

await mw.memory.set("greeting", { hello: "world" });
print({ case: "unary", saw: await mw.memory.get("greeting") });

let method = "";
const withKey: Interceptor = (next) => (request) => {
  request.header.set("authorization", `Bearer ${apiKey}`);
  return next(request);
};
const byGet = createConnectTransport({
  baseUrl: env.MOLTWIRE_URL!,
  useHttpGet: true,
  interceptors: [withKey],
  fetch: (input, init) => {
    method = init!.method!;
    return fetch(input, init);
  },
});
const { entry } = await createClient(MemoryService, byGet).getEntry({ key: "greeting" });
print({ case: "get", saw: { method, value: contentOf(entry?.value) } });

const wrong = await failed(mw.memory.set("", 1));
const saw = { class: wrong.constructor.name, reason: wrong.reason, field: wrong.fields[0]?.field };
print({ case: "error-details", saw });

const bad = await failed(connect({ apiKey: "mw_wrong" }).memory.get("greeting"));
print({ case: "bad-key", saw: { class: bad.constructor.name, reason: bad.reason } });

const late = await failed(mw.queue.claimJobs({ queues: ["none"], wait: { seconds: 30n } }, { timeoutMs: 300 }));
print({ case: "deadline", saw: { class: late.constructor.name, reason: late.reason } });

const faulty = connect({ url: env.CONFORMANCE_FAULTY_URL! });
const ends: string[] = [];
for (let n = 0; n < 8; n++)
  ends.push(
    await faulty.queue.cancelJob({ jobId: `job_${n}` }).then(
      () => "done",
      (error: MoltwireError) => error.reason,
    ),
  );
print({ case: "retries", saw: ends });

const wire = connect({ url: env.CONFORMANCE_WIRE_URL! });
await wire.queue.listJobs({ queue: "once" });
await want("idempotent-retry", "lose the answer");
const { jobId } = await wire.queue.submit("once", 1);
const { jobs } = await mw.queue.listJobs({ queue: "once" });
print({ case: "idempotent-retry", saw: { jobs: jobs.length, told: jobs[0]?.jobId === jobId } });

const heard: unknown[] = [];
for await (const { payload } of mw.relay.subscribe({ afterSequence: 0n })) {
  heard.push(contentOf(payload));
  if (heard.length === 20) await want("stream-resume", "kill the server");
  if (heard.length === 40) await want("stream-resume", "roll the servers");
  if (heard.length === 60) break;
}
print({ case: "stream-resume", saw: heard });

const contractId = env.CONFORMANCE_CONTRACT_ID!;
const output = await mw.bus.call(contractId, { text: "hello" });
const { reason } = await failed(mw.bus.call(contractId, {}));
const { taskId } = await mw.bus.submit(contractId, { text: "again" });
for await (const { event } of mw.bus.watch(taskId)) if (event.case === "task" && event.value.endTime) break;
stop.abort();
await serving;
print({ case: "serve", saw: { output, reason, ended: true } });

let last: string | undefined;
for await (const { event } of mw.bus.watch(taskId)) last = event.case;
print({ case: "stream-end", saw: last });

const stopWork = new AbortController();
const working = mw.queue.work(
  async ({ jobId, attempt, payload, progress }) => {
    if (attempt === 1) throw new Error("once more");
    progress(0.5, "half");
    const half = async () => (await mw.queue.getJob({ jobId })).job?.progress?.fraction === 0.5;
    while (!(await half())) await setTimeout(100);
    stopWork.abort();
    return { shouted: (payload as { text: string }).text.toUpperCase() };
  },
  { queues: ["work"], leaseMs: 15_000, signal: stopWork.signal },
);
const backoff = { initial: { nanos: 10_000_000 }, max: { nanos: 10_000_000 } };
const asked = await mw.queue.submit("work", { text: "hello" }, { maxAttempts: 3, backoff });
await working;
const { job: done } = await mw.queue.getJob({ jobId: asked.jobId });
print({ case: "work", saw: { result: contentOf(done?.result), attempts: done?.attempts, ended: true } });
process.exit(0);
