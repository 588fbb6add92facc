/** Processes that answer one message with one. */
import { fork } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";

export type Worker<In, Out> = { ask(message: In): Promise<Out>; close(): Promise<void> };

const patienceMs = 300_000;

/** Starts one of this folder's programs, which trusts the certificate of the file. */
export function startWorker<In, Out>(file: string, certificate: string | undefined): Worker<In, Out> {
  const child = fork(join(import.meta.dirname, file), {
    serialization: "advanced",
    env: { ...process.env, ...(certificate && { NODE_EXTRA_CA_CERTS: certificate }) },
  });
  const ended = once(child, "exit");
  return {
    async ask(message) {
      child.send(message as object);
      const answered = once(child, "message", { signal: AbortSignal.timeout(patienceMs) });
      const [answer] = (await Promise.race([answered, ended.then(() => [{ error: `${file} ended` }])])) as [
        Out | { error: string },
      ];
      if (typeof answer === "object" && answer !== null && "error" in answer) throw new Error(answer.error);
      return answer as Out;
    },
    async close() {
      if (child.connected) child.disconnect();
      await ended;
    },
  };
}
