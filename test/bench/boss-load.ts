/**
 * The load generator for pg-boss, which is a library: callers that each send a job, fetch one and complete it, in one process with one instance of it. No HTTP
 * lies between, so it has that much less to do than a server. Arguments: where the library is, and the address of the database.
 */
import type { Job, Outcome } from "./load.ts";

type Boss = {
  start(): Promise<unknown>;
  createQueue(name: string): Promise<unknown>;
  send(name: string, data: object): Promise<string | null>;
  fetch(name: string): Promise<readonly { readonly id: string }[]>;
  complete(name: string, id: string): Promise<unknown>;
  on(event: "error", listener: () => void): unknown;
};
type Library = { readonly PgBoss?: unknown; readonly default?: unknown };

const queue = "bench";
const [, , library = "", url = ""] = process.argv;
const { PgBoss, default: fallback } = (await import(library)) as Library;
const boss = new ((PgBoss ?? fallback) as new (options: object) => Boss)({ connectionString: url, max: 16 });
let error: string | undefined;
boss.on("error", () => {});
await boss.start();
await boss.createQueue(queue);
process.send!("ready");

async function measure({ templates, measureMs }: Job): Promise<Outcome> {
  const latencies: number[] = [];
  let failed = 0;
  const cpu = process.cpuUsage();
  const startMs = performance.now();
  const endMs = startMs + measureMs;
  const run = async () => {
    for (let beganMs = performance.now(); beganMs < endMs; ) {
      try {
        await boss.send(queue, { work: "work" });
        const [job] = await boss.fetch(queue);
        if (job) await boss.complete(queue, job.id);
      } catch (thrown) {
        failed++;
        error ??= String(thrown);
      }
      const nowMs = performance.now();
      latencies.push(nowMs - beganMs);
      beganMs = nowMs;
    }
  };
  await Promise.all(templates.map(run));
  const tookMs = performance.now() - startMs;
  const { user, system } = process.cpuUsage(cpu);
  latencies.sort((a, b) => a - b);
  const at = (part: number) => latencies[Math.min(latencies.length - 1, Math.floor(latencies.length * part))] ?? 0;
  return {
    acknowledged: latencies.length - failed,
    distinctIds: undefined,
    failed,
    failure: error,
    perSecond: ((latencies.length - failed) / tookMs) * 1_000,
    p50Ms: at(0.5),
    p99Ms: at(0.99),
    busy: (user + system) / 1_000 / tookMs,
  };
}

process.on("message", (job: Job) => {
  measure(job).then(
    (outcome) => process.send!(outcome),
    (thrown: unknown) => process.send!({ error: String(thrown) }),
  );
});
process.on("disconnect", () => process.exit(0));
