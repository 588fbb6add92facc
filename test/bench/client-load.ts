/**
 * The load generator that is a program of a user's: all its callers share one client of @moltwire/client, which sends what they ask for in one turn as one batch.
 * Arguments: what they do, the server's address, a key, and for `set` and `get` an agent for each caller.
 */
import { connect } from "../../clients/typescript/index.ts";
import { answerJobs } from "./library-load.ts";

const [, , what = "", url = "", apiKey = "", ...agentIds] = process.argv;
const mw = connect({ url, apiKey });
const queue = "bench";
const payload = { kind: { case: "json", value: { kind: { case: "stringValue", value: "work" } } } } as const;
let counter = 0;

const works: Readonly<Record<string, (caller: number) => Promise<unknown>>> = {
  set: (caller) =>
    mw.memory.setEntry({
      agentId: agentIds[caller]!,
      write: {
        key: "bench",
        value: {
          kind: {
            case: "json",
            value: { kind: { case: "stringValue", value: `value ${++counter} ${"x".repeat(80)}` } },
          },
        },
      },
    }),
  get: (caller) => mw.memory.getEntry({ agentId: agentIds[caller]!, key: "bench" }),
  async cycle() {
    await mw.queue.submitJob({ job: { queue, payload } });
    const { jobs } = await mw.queue.claimJobs({ queues: [queue] });
    const [claimed] = jobs;
    if (!claimed) throw new Error("a job was submitted and none claimed");
    await mw.queue.completeJob({ jobId: claimed.job!.jobId, leaseToken: claimed.leaseToken });
  },
};

const work = works[what];
if (!work) throw new Error(`there is no work "${what}"`);
answerJobs(async (caller) => void (await work(caller)));
