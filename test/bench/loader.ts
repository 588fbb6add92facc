/** The load generator as the bench sees it. */
import { fork } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import type { Job, Outcome } from "./load.ts";

export type Loader = { measure(job: Job): Promise<Outcome>; close(): Promise<void> };

const readyMs = 30_000;

/** Starts it in a process of its own, so that it takes no time from a server or from the bench. */
export async function startLoader(script = "load.ts", args: readonly string[] = []): Promise<Loader> {
  const child = fork(join(import.meta.dirname, script), args, { serialization: "advanced" });
  await once(child, "message", { signal: AbortSignal.timeout(readyMs) });
  return {
    async measure(job) {
      child.send(job);
      const late = AbortSignal.timeout(job.measureMs + 30_000);
      const [outcome] = (await once(child, "message", { signal: late })) as [Outcome | { error: string }];
      if ("error" in outcome) throw new Error(outcome.error);
      return outcome;
    },
    async close() {
      child.disconnect();
      await once(child, "exit");
    },
  };
}
