/** The frames of a conversation: commands, each in a transaction of its own. */
import { clone, create } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { Code, type HandlerContext } from "@connectrpc/connect";
import { ErrorInfoSchema, RetryInfoSchema } from "../../gen/google/rpc/error_details_pb.ts";
import { Role } from "../../gen/moltwire/api/v1/access_pb.ts";
import type { PresenceStatus } from "../../gen/moltwire/relay/v1/message_pb.ts";
import {
  type ConverseRequest,
  type ConverseResponse,
  FrameFailureSchema,
  MarkReadRequestSchema,
  MarkReadResponseSchema,
  PresenceAcceptedSchema,
  RelayService,
  SendRequestSchema,
  SendResponseSchema,
} from "../../gen/moltwire/relay/v1/relay_service_pb.ts";
import type { App } from "../app.ts";
import { keepingOf } from "../bus/policy/keeping.ts";
import { badField } from "../errors.ts";
import { callerOf, traceOf } from "../rpc/caller.ts";
import { type CommandContext, runCommand } from "../rpc/command.ts";
import { asConnectError } from "../rpc/errors.ts";
import { takeOfAgent, takeOfKey } from "../rpc/limits.ts";
import { seesWholeOrg } from "../rpc/scope.ts";
import { checkInbox } from "./access.ts";
import { marked } from "./mark.ts";
import { inboxOf } from "./message.ts";
import { send } from "./send.ts";

/** Who speaks, and what frames change of the conversation itself. */
export type Speaker = {
  readonly orgId: string;
  readonly agentId: string;
  setPresence(status: PresenceStatus): Promise<void>;
  watchPresence(agentIds: readonly string[]): void;
};

type Event = ConverseResponse["event"];

/** Carries out one frame and gives its answer, which tells too why it was refused. */
export async function carryOut(
  app: App,
  speaker: Speaker,
  frame: ConverseRequest,
  context: HandlerContext,
): Promise<Event> {
  try {
    const caller = callerOf(context);
    await takeOfKey(app.limiters, caller, new Headers());
    if (caller.role === Role.AGENT) await takeOfAgent(app.limiters, caller, new Headers());
    return await carry(app, speaker, frame, context);
  } catch (error) {
    return failed(app, error, context);
  }
}

async function carry(app: App, speaker: Speaker, { frame }: ConverseRequest, context: HandlerContext): Promise<Event> {
  switch (frame.case) {
    case "send": {
      const { idempotencyKey, message } = frame.value;
      const request = clone(SendRequestSchema, message!);
      if (seesWholeOrg(callerOf(context))) Object.assign(request, { orgId: speaker.orgId, agentId: speaker.agentId });
      const { reply } = await runCommand(app, request, asCall(context, "send", idempotencyKey), (req, given) =>
        send(app, req, given),
      );
      return { case: "sent", value: create(SendResponseSchema, reply) };
    }
    case "markRead": {
      const { orgId, agentId } = speaker;
      const request = create(MarkReadRequestSchema, { orgId, agentId, read: frame.value.read });
      const { reply } = await runCommand(app, request, asCall(context, "markRead", ""), async (req, given) => {
        await checkInbox(keepingOf(app, given), app, given, agentId);
        return marked(given.tx, inboxOf(orgId, agentId), req.read, given.now);
      });
      return { case: "marked", value: create(MarkReadResponseSchema, reply) };
    }
    case "setPresence":
      await speaker.setPresence(frame.value.status);
      return { case: "presenceAccepted", value: create(PresenceAcceptedSchema) };
    case "watchPresence":
      speaker.watchPresence(frame.value.agentIds);
      return { case: "presenceAccepted", value: create(PresenceAcceptedSchema) };
    default:
      throw badField("frame", "`open` is the first frame only");
  }
}

/** The context of the call that this frame is as much as: it shares its idempotency keys. */
const asCall = ({ values }: HandlerContext, method: "send" | "markRead", idempotencyKey: string): CommandContext => ({
  method: RelayService.method[method],
  values,
  requestHeader: new Headers(idempotencyKey ? { "idempotency-key": idempotencyKey } : {}),
  responseHeader: new Headers(),
});

function failed(app: App, error: unknown, context: HandlerContext): Event {
  const refusal = asConnectError(app, error, context.method, traceOf(context).traceId, context.signal);
  const [info] = refusal.findDetails(ErrorInfoSchema);
  const [retry] = refusal.findDetails(RetryInfoSchema);
  const value = create(FrameFailureSchema, {
    reason: info?.reason ?? Code[refusal.code].toUpperCase(),
    message: refusal.rawMessage,
    metadata: info?.metadata ?? {},
  });
  if (retry?.retryDelay)
    value.retryAfter = durationFromMs(
      Number(retry.retryDelay.seconds) * 1000 + Math.ceil(retry.retryDelay.nanos / 1e6),
    );
  return { case: "failed", value };
}
