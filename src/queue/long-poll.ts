import type { MessageInitShape } from "@bufbuild/protobuf";
import { durationMs } from "@bufbuild/protobuf/wkt";
import type { HandlerContext } from "@connectrpc/connect";
import type { ClaimJobsRequest, ClaimJobsResponseSchema } from "../../gen/moltwire/queue/v1/queue_service_pb.ts";
import type { App } from "../app.ts";
import { actingAgent } from "../bus/submit.ts";
import { callerOf } from "../rpc/caller.ts";
import { type Command, runCommand } from "../rpc/command.ts";
import { endWithKey } from "../rpc/feed.ts";
import { orgOf } from "../rpc/scope.ts";
import { queueTopic } from "./change-log.ts";
import { claimJobs, toLeasedJobs } from "./claim.ts";
import { bellMs, untilClaimable } from "./wait.ts";
import { claimOf } from "./wish.ts";

type Reply = MessageInitShape<typeof ClaimJobsResponseSchema>;

/** Undoes a claim that found nothing and will be made again: its idempotency key has to be free for the one that finds something. */
class NothingYet extends Error {}

/**
 * ClaimJobs: claims, and while there is nothing and time is left, waits and claims again. Between two claims it holds nothing but a bell. The wait ends with
 * SHUTTING_DOWN when the server stops, and with the key's reason when its key ends.
 */
export async function claimOrWait(app: App, req: ClaimJobsRequest, context: HandlerContext): Promise<Reply> {
  const untilMs = app.clock.now() + (req.wait ? durationMs(req.wait) : 0);
  const claim = (last: boolean) =>
    runCommand(app, req, context, async (request, { tx, caller, orgId, now, trace }: Command): Promise<Reply> => {
      const agentId = await actingAgent(tx, caller, orgId, request.agentId);
      const rows = await claimJobs(tx, app, claimOf(request, orgId, agentId, trace.traceId), now);
      if (rows.length === 0 && !last) throw new NothingYet();
      const { jobs } = await toLeasedJobs(tx, app, rows, now);
      return { jobs: [...jobs] };
    });
  if (untilMs <= app.clock.now()) return (await claim(true)).reply;

  const caller = callerOf(context);
  const orgId = await orgOf(app.db.query, caller, req.orgId);
  const { queues } = claimOf(req, orgId, "", "");
  const over = new AbortController();
  const signal = AbortSignal.any([context.signal, app.stopping, over.signal]);
  try {
    const bell = app.db.listen(
      queues.map((queue) => queueTopic(orgId, queue)),
      signal,
    );
    endWithKey(app, caller, over, signal);
    for (let last = false; ; ) {
      try {
        return (await claim(last)).reply;
      } catch (error) {
        if (!(error instanceof NothingYet)) throw error;
      }
      await bell.wait(bellMs(app, 0), signal); // others may be taking what there seems to be
      last = !(await untilClaimable(app, orgId, queues, bell, untilMs, signal));
    }
  } catch (error) {
    throw over.signal.aborted ? over.signal.reason : error;
  } finally {
    over.abort();
  }
}
