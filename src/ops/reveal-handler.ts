/** RevealPayload: one thing with its payloads, as the method gives it that its own organisation reads it by, and a row in their audit log that tells so. */
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import { type ApprovalService, GetApprovalRequestSchema } from "../../gen/moltwire/bus/v1/approval_service_pb.ts";
import { type BusService, GetTaskRequestSchema } from "../../gen/moltwire/bus/v1/bus_service_pb.ts";
import {
  type DeadLetterService,
  GetDeadLetterRequestSchema,
} from "../../gen/moltwire/bus/v1/dead_letter_service_pb.ts";
import { GetEntryRequestSchema, type MemoryService } from "../../gen/moltwire/memory/v1/memory_service_pb.ts";
import {
  GetSharedEntryRequestSchema,
  type SharedMemoryService,
} from "../../gen/moltwire/memory/v1/shared_memory_service_pb.ts";
import type {
  AdminService,
  RevealPayloadRequest,
  RevealPayloadResponseSchema,
} from "../../gen/moltwire/ops/v1/admin_service_pb.ts";
import { GetJobRequestSchema, type QueueService } from "../../gen/moltwire/queue/v1/queue_service_pb.ts";
import { GetScheduleRequestSchema, type ScheduleService } from "../../gen/moltwire/queue/v1/schedule_service_pb.ts";
import { GetMessageRequestSchema, type RelayService } from "../../gen/moltwire/relay/v1/relay_service_pb.ts";
import { GetDeliveryRequestSchema, type WebhookService } from "../../gen/moltwire/webhook/v1/webhook_service_pb.ts";
import type { App } from "../app.ts";
import { runCommand } from "../rpc/command.ts";

/** What reads the things that have payloads. */
export type Readers = {
  readonly tasks: Pick<ServiceImpl<typeof BusService>, "getTask">;
  readonly deadLetters: Pick<ServiceImpl<typeof DeadLetterService>, "getDeadLetter">;
  readonly approvals: Pick<ServiceImpl<typeof ApprovalService>, "getApproval">;
  readonly queues: Pick<ServiceImpl<typeof QueueService>, "getJob">;
  readonly schedules: Pick<ServiceImpl<typeof ScheduleService>, "getSchedule">;
  readonly relay: Pick<ServiceImpl<typeof RelayService>, "getMessage">;
  readonly memory: Pick<ServiceImpl<typeof MemoryService>, "getEntry">;
  readonly sharedMemory: Pick<ServiceImpl<typeof SharedMemoryService>, "getSharedEntry">;
  readonly webhooks: Pick<ServiceImpl<typeof WebhookService>, "getDelivery">;
};

type Reply = Exclude<MessageInitShape<typeof RevealPayloadResponseSchema>, { $typeName: string }>;
type Revealed = NonNullable<Reply["revealed"]>;

export const revealHandler = (app: App, readers: Readers): Pick<ServiceImpl<typeof AdminService>, "revealPayload"> => ({
  async revealPayload(req, context) {
    const revealed = await read(readers, req, context);
    const noted = { reason: req.reason, ...placeOf(req) };
    return (await runCommand(app, req, context, async (): Promise<Reply> => ({ revealed }), noted)).reply;
  },
});

/** What the ids at the top of the request do not tell of what is shown. */
function placeOf({ subject }: RevealPayloadRequest): Record<string, string> {
  if (subject.case === "entry") {
    const { agentId, namespace, key } = subject.value;
    return { ...(agentId && { agent_id: agentId }), ...(namespace && { namespace }), key };
  }
  if (subject.case !== "delivery") return {};
  return { webhook_id: subject.value.webhookId, event_id: subject.value.eventId };
}

async function read(by: Readers, { orgId, subject }: RevealPayloadRequest, context: HandlerContext): Promise<Revealed> {
  switch (subject.case) {
    case "taskId": {
      const { task } = await by.tasks.getTask(create(GetTaskRequestSchema, { orgId, taskId: subject.value }), context);
      return { case: "task", value: task! };
    }
    case "deadLetterId": {
      const request = create(GetDeadLetterRequestSchema, { orgId, deadLetterId: subject.value });
      const { deadLetter } = await by.deadLetters.getDeadLetter(request, context);
      return { case: "deadLetter", value: deadLetter! };
    }
    case "approvalId": {
      const request = create(GetApprovalRequestSchema, { orgId, approvalId: subject.value });
      const { approval } = await by.approvals.getApproval(request, context);
      return { case: "approval", value: approval! };
    }
    case "jobId": {
      const { job } = await by.queues.getJob(create(GetJobRequestSchema, { orgId, jobId: subject.value }), context);
      return { case: "job", value: job! };
    }
    case "scheduleId": {
      const request = create(GetScheduleRequestSchema, { orgId, scheduleId: subject.value });
      const { schedule } = await by.schedules.getSchedule(request, context);
      return { case: "schedule", value: schedule! };
    }
    case "messageId": {
      const request = create(GetMessageRequestSchema, { orgId, messageId: subject.value });
      const { message } = await by.relay.getMessage(request, context);
      return { case: "message", value: message! };
    }
    case "entry": {
      const { agentId, namespace, key } = subject.value;
      if (agentId) {
        const request = create(GetEntryRequestSchema, { orgId, agentId, namespace, key });
        return { case: "entry", value: (await by.memory.getEntry(request, context)).entry! };
      }
      const request = create(GetSharedEntryRequestSchema, { orgId, namespace, key });
      return { case: "entry", value: (await by.sharedMemory.getSharedEntry(request, context)).sharedEntry!.entry! };
    }
    case "delivery": {
      const { webhookId, eventId } = subject.value;
      const request = create(GetDeliveryRequestSchema, { orgId, webhookId, eventId });
      const { delivery, body = "" } = await by.webhooks.getDelivery(request, context);
      const responseBodies = (delivery?.attempts ?? []).map(({ responseBody = "" }) => responseBody);
      return { case: "delivery", value: { body, responseBodies } };
    }
    default:
      return { case: undefined };
  }
}
