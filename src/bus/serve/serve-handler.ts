import { durationMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import type { Progress } from "../../../gen/moltwire/agent/v1/agent_runtime_pb.ts";
import type {
  BusService,
  HeartbeatTaskRequest,
  RespondTaskRequest,
  ServeRequest,
} from "../../../gen/moltwire/bus/v1/bus_service_pb.ts";
import { TaskState } from "../../../gen/moltwire/bus/v1/task_pb.ts";
import type { App } from "../../app.ts";
import type { Tx } from "../../db/db.ts";
import { badField, Fault, notFound } from "../../errors.ts";
import { tellPieces } from "../../federation/gateway/echo.ts";
import { callerOf } from "../../rpc/caller.ts";
import { type Command, command, runCommand } from "../../rpc/command.ts";
import { watched } from "../../rpc/feed.ts";
import { orgOf } from "../../rpc/scope.ts";
import { findAgent, pulls } from "../agent-store.ts";
import { spanOf } from "../conclude.ts";
import type { Dispatcher, Job } from "../dispatch.ts";
import { recordPieces } from "../piece-store.ts";
import { actingAgent } from "../submit.ts";
import { findTask, type Hold } from "../task-store.ts";
import { holdOf, leaseLost } from "./delivery.ts";
import { extendDelivery, type Instance, noteTold } from "./pulled-store.ts";
import { respond } from "./respond.ts";
import { serveStream } from "./stream.ts";

const defaultLeaseMs = 30_000;

/** Progress that comes sooner after the one before is not kept: heartbeats are not counted against the rate limit. */
const leastBetweenMs = 100;

type Built = "serve" | "respondTask" | "heartbeatTask";

export const serveHandler = (app: App, dispatcher: Dispatcher): Pick<ServiceImpl<typeof BusService>, Built> => ({
  serve: (req, context) => serve(app, dispatcher, req, context),

  respondTask: async (req, context) => {
    // Set by the run of the body that is committed, whether its answer is a reply or a refusal.
    let job: Job | undefined;
    try {
      const { reply, replayed } = await runCommand(app, req, context, async (request: RespondTaskRequest, command) => {
        job = undefined;
        const { state, refused, job: next } = await respond(app, request, command);
        if (next && !dispatcher.hasRoom()) throw overloaded();
        job = next;
        if (refused) throw refused;
        return { state };
      });
      if (replayed) job = undefined;
      return reply;
    } catch (error) {
      if (!(error instanceof Fault && error.name === "Refused")) job = undefined;
      throw error;
    } finally {
      if (job) dispatcher.start(job);
    }
  },

  heartbeatTask: command(app, (req, given) => heartbeat(app, req, given)),
});

const overloaded = (): Fault =>
  new Fault("OVERLOADED", "this server works on as many tasks as it can", {}, { retryAfterMs: 1_000 });

async function heartbeat(app: App, req: HeartbeatTaskRequest, { tx, caller, orgId, now }: Command) {
  const hold = holdOf(app, caller, orgId, req);
  const untilMs = await extendDelivery(tx, hold, now);
  if (untilMs !== undefined) {
    if (req.progress) await tellProgress(tx, app, hold, req.progress, now);
    return { leaseExpireTime: timestampFromMs(untilMs), cancelRequested: false };
  }
  const task = await findTask(tx, orgId, req.taskId);
  if (task?.state !== TaskState.CANCELED || task.lease_token !== hold.token) throw leaseLost();
  return { leaseExpireTime: timestampFromMs(now), cancelRequested: true };
}

/** Lets those who watch the task hear how far it is. */
async function tellProgress(tx: Tx, app: App, hold: Hold, progress: Progress, now: number): Promise<void> {
  const told = await noteTold(tx, hold, now, leastBetweenMs);
  const task = told && (await findTask(tx, hold.orgId, hold.taskId));
  if (!task) return;
  const pieces = [{ case: "progress", value: progress }] as const;
  await recordPieces(tx, app, spanOf(task), told.agent_id, pieces);
  await tellPieces(tx, app, task, pieces);
}

async function* serve(app: App, dispatcher: Dispatcher, req: ServeRequest, context: HandlerContext) {
  const caller = callerOf(context);
  const orgId = await orgOf(app.db.query, caller, req.orgId);
  const agentId = await actingAgent(app.db.query, caller, orgId, req.agentId);
  if (agentId === "") throw badField("agent_id", "name the agent to serve for");
  const agent = await findAgent(app.db.query, orgId, agentId);
  if (!agent) throw notFound("agent", agentId);
  if (!pulls(agent)) {
    const message = "the agent does not pull: give it the endpoint `pull` with UpdateAgent";
    throw new Fault("FAILED_PRECONDITION", message, { field: "agent_id", agent_id: agentId });
  }
  const instance: Instance = {
    orgId,
    agentId,
    name: req.instance || `stream-${app.ids.span()}`,
    capacity: req.drain ? 0 : req.capacity || 1,
    leaseMs: req.lease ? durationMs(req.lease) : defaultLeaseMs,
  };
  yield* watched(app, context, (signal) => serveStream(app, dispatcher, instance, req.instance !== "", signal));
}
