/** Jobs in one queue, which the agents work off: who is free takes the next one. */
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { ConnectError } from "@connectrpc/connect";
import { ErrorInfoSchema } from "../../../gen/google/rpc/error_details_pb.ts";
import { JobState } from "../../../gen/moltwire/queue/v1/job_pb.ts";
import type { Life } from "../actor.ts";
import { checkBalancing, measureBalancing } from "../check/balancing.ts";
import { numbers, type Plan } from "../plan.ts";
import { payloadOf, saidIn } from "../said.ts";
import type { PatternPlay, Scene } from "../scene.ts";

const queue = "lab";
const jobsPerAgent = 10;
const pageSize = 250;
/** Longer than any job takes, and short enough that the job of who crashed is done in time. */
const leaseMs = 2_000;
const waitMs = 300;

/** How long a job takes: about as long as any other. */
const workMsOf = (plan: Plan, job: number): number => 20 + plan.pick(`work ${job}`, 11);

export const loadBalancing: PatternPlay = {
  roleOf: () => "worker",
  choices: (plan, agents) =>
    Object.fromEntries(numbers(agents * jobsPerAgent).map((job) => [`work-ms/${job}`, String(workMsOf(plan, job))])),

  async prepare(scene) {
    const jobs = numbers(scene.agentIds.length * jobsPerAgent).map((job) => ({
      queue,
      payload: payloadOf({ workMs: workMsOf(scene.plan, job) }),
      maxAttempts: 20,
    }));
    const { results } = await scene.arbiter.queue.submitJobs({ agentId: scene.registryId, jobs });
    for (const { job } of results) scene.see({ kind: "submitted", job: job!.jobId });
  },

  async play(life, scene) {
    for (let nth = 1; ; nth++) {
      const { jobs } = await life.call(`claim ${nth}`, (options) =>
        life.clients.queue.claimJobs(
          { queues: [queue], maxJobs: 1, lease: durationFromMs(leaseMs), wait: durationFromMs(waitMs) },
          options,
        ),
      );
      for (const { job, leaseToken } of jobs) {
        await life.sleep(Number(saidIn(job!.payload).workMs));
        await complete(life, scene, job!.jobId, leaseToken);
      }
      if (jobs.length === 0 && (await isWorkedOff(life, nth))) return;
    }
  },

  async conclude(scene) {
    let pageToken = "";
    do {
      const page = await scene.arbiter.queue.listJobs({ queue, states: [JobState.COMPLETED], pageSize, pageToken });
      for (const { jobId, workerAgentId } of page.jobs)
        scene.see({ kind: "job", job: jobId, agent: scene.agentIds.indexOf(workerAgentId) });
      pageToken = page.nextPageToken;
    } while (pageToken !== "");
  },
  check: checkBalancing,
  measure: measureBalancing,
};

/** Another agent has the job by now, if this one took longer than its lease. */
async function complete(life: Life, scene: Scene, jobId: string, leaseToken: string): Promise<void> {
  try {
    await life.call(`complete ${jobId}`, (options) => life.clients.queue.completeJob({ jobId, leaseToken }, options));
    scene.see({ kind: "completed", agent: life.agent, job: jobId });
  } catch (error) {
    const [info] = ConnectError.from(error).findDetails(ErrorInfoSchema);
    if (info?.reason !== "LEASE_LOST") throw error;
  }
}

async function isWorkedOff(life: Life, nth: number): Promise<boolean> {
  const { queues } = await life.call(`look ${nth}`, (options) => life.clients.queue.getQueueStats({ queue }, options));
  return queues.every(({ scheduled, pending, leased }) => scheduled + pending + leased === 0n);
}
