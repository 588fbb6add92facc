/**
 * The load generator for pg-boss, which is a library: callers that each send a job, fetch one and complete it, in one process with one instance of it. No HTTP
 * lies between, so it has that much less to do than a server. Arguments: where the library is, and the address of the database.
 */
import { answerJobs } from "./library-load.ts";

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
boss.on("error", () => {});
await boss.start();
await boss.createQueue(queue);

answerJobs(async () => {
  await boss.send(queue, { work: "work" });
  const [job] = await boss.fetch(queue);
  if (job) await boss.complete(queue, job.id);
});
