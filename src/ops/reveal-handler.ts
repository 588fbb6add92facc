/** RevealPayload: one thing with its payloads, as the method gives it that its own organisation reads it by, and a row in their audit log that tells so. */
import { create, type DescMessage, fromJson, type MessageInitShape, type MessageShape } from "@bufbuild/protobuf";
import { ValueSchema } from "@bufbuild/protobuf/wkt";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import {
  type ApprovalService,
  GetApprovalRequestSchema,
  GetApprovalResponseSchema,
} from "../../gen/moltwire/bus/v1/approval_service_pb.ts";
import {
  type BusService,
  GetTaskRequestSchema,
  GetTaskResponseSchema,
} from "../../gen/moltwire/bus/v1/bus_service_pb.ts";
import {
  type DeadLetterService,
  GetDeadLetterRequestSchema,
  GetDeadLetterResponseSchema,
} from "../../gen/moltwire/bus/v1/dead_letter_service_pb.ts";
import {
  GetEntryRequestSchema,
  GetEntryResponseSchema,
  type MemoryService,
} from "../../gen/moltwire/memory/v1/memory_service_pb.ts";
import {
  GetSharedEntryRequestSchema,
  GetSharedEntryResponseSchema,
  type SharedMemoryService,
} from "../../gen/moltwire/memory/v1/shared_memory_service_pb.ts";
import type {
  AdminService,
  RevealPayloadRequest,
  RevealPayloadResponseSchema,
} from "../../gen/moltwire/ops/v1/admin_service_pb.ts";
import {
  GetJobRequestSchema,
  GetJobResponseSchema,
  type QueueService,
} from "../../gen/moltwire/queue/v1/queue_service_pb.ts";
import {
  GetScheduleRequestSchema,
  GetScheduleResponseSchema,
  type ScheduleService,
} from "../../gen/moltwire/queue/v1/schedule_service_pb.ts";
import {
  GetMessageRequestSchema,
  GetMessageResponseSchema,
  type RelayService,
} from "../../gen/moltwire/relay/v1/relay_service_pb.ts";
import {
  GetDeliveryRequestSchema,
  GetDeliveryResponseSchema,
  type WebhookService,
} from "../../gen/moltwire/webhook/v1/webhook_service_pb.ts";
import type { App } from "../app.ts";
import { runCommand } from "../rpc/command.ts";
import { payloadsOf } from "../rpc/payloads.ts";

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
type Payloads = NonNullable<Reply["payloads"]>;

export const revealHandler = (app: App, readers: Readers): Pick<ServiceImpl<typeof AdminService>, "revealPayload"> => ({
  async revealPayload(req, context) {
    const payloads = await read(readers, req, context);
    const noted = { reason: req.reason, ...placeOf(req) };
    return (await runCommand(app, req, context, async (): Promise<Reply> => ({ payloads }), noted)).reply;
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

async function read(by: Readers, req: RevealPayloadRequest, context: HandlerContext): Promise<Payloads> {
  const { orgId, subject } = req;
  switch (subject.case) {
    case "taskId": {
      const request = create(GetTaskRequestSchema, { orgId, taskId: subject.value });
      return told(GetTaskResponseSchema, await by.tasks.getTask(request, context));
    }
    case "deadLetterId": {
      const request = create(GetDeadLetterRequestSchema, { orgId, deadLetterId: subject.value });
      return told(GetDeadLetterResponseSchema, await by.deadLetters.getDeadLetter(request, context));
    }
    case "approvalId": {
      const request = create(GetApprovalRequestSchema, { orgId, approvalId: subject.value });
      return told(GetApprovalResponseSchema, await by.approvals.getApproval(request, context));
    }
    case "jobId": {
      const request = create(GetJobRequestSchema, { orgId, jobId: subject.value });
      return told(GetJobResponseSchema, await by.queues.getJob(request, context));
    }
    case "scheduleId": {
      const request = create(GetScheduleRequestSchema, { orgId, scheduleId: subject.value });
      return told(GetScheduleResponseSchema, await by.schedules.getSchedule(request, context));
    }
    case "messageId": {
      const request = create(GetMessageRequestSchema, { orgId, messageId: subject.value });
      return told(GetMessageResponseSchema, await by.relay.getMessage(request, context));
    }
    case "entry": {
      const { agentId, namespace, key } = subject.value;
      if (agentId) {
        const request = create(GetEntryRequestSchema, { orgId, agentId, namespace, key });
        return told(GetEntryResponseSchema, await by.memory.getEntry(request, context));
      }
      const request = create(GetSharedEntryRequestSchema, { orgId, namespace, key });
      return told(GetSharedEntryResponseSchema, await by.sharedMemory.getSharedEntry(request, context));
    }
    case "delivery": {
      const { webhookId, eventId } = subject.value;
      const request = create(GetDeliveryRequestSchema, { orgId, webhookId, eventId });
      return told(GetDeliveryResponseSchema, await by.webhooks.getDelivery(request, context));
    }
    default:
      return [];
  }
}

/** What an answer holds of payloads. */
const told = <Desc extends DescMessage>(schema: Desc, answer: MessageInitShape<Desc>): Payloads =>
  payloadsOf(schema, create(schema, answer) as MessageShape<Desc>).map(({ field, value }) => ({
    field,
    value: fromJson(ValueSchema, value),
  }));
