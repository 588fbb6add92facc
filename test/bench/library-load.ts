/** What load generators have in common that work through a library, and send no bytes of their own. */
import type { Job, Outcome } from "./load.ts";

/** Tells the bench that it is ready, and measures as it is asked: each of so many callers does its work again as soon as it is done. `work` is given which caller it is. */
export function answerJobs(work: (caller: number) => Promise<void>): void {
  process.on("message", (job: Job) => {
    measure(job, work).then(
      (outcome) => process.send!(outcome),
      (thrown: unknown) => process.send!({ error: String(thrown) }),
    );
  });
  process.on("disconnect", () => process.exit(0));
  process.send!("ready");
}

async function measure({ templates, measureMs }: Job, work: (caller: number) => Promise<void>): Promise<Outcome> {
  const latencies: number[] = [];
  let failed = 0;
  let failure: string | undefined;
  const cpu = process.cpuUsage();
  const startMs = performance.now();
  const endMs = startMs + measureMs;
  const run = async (caller: number) => {
    for (let beganMs = performance.now(); beganMs < endMs; ) {
      try {
        await work(caller);
      } catch (thrown) {
        failed++;
        failure ??= String(thrown);
      }
      const nowMs = performance.now();
      latencies.push(nowMs - beganMs);
      beganMs = nowMs;
    }
  };
  await Promise.all(templates.map((_, caller) => run(caller)));
  const tookMs = performance.now() - startMs;
  const { user, system } = process.cpuUsage(cpu);
  latencies.sort((a, b) => a - b);
  const at = (part: number) => latencies[Math.min(latencies.length - 1, Math.floor(latencies.length * part))] ?? 0;
  return {
    acknowledged: latencies.length - failed,
    distinctIds: undefined,
    failed,
    failure,
    perSecond: ((latencies.length - failed) / tookMs) * 1_000,
    p50Ms: at(0.5),
    p99Ms: at(0.99),
    busy: (user + system) / 1_000 / tookMs,
  };
}
