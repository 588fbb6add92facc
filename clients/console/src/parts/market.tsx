import { type JsonValue, toJson } from "@bufbuild/protobuf";
import { ValueSchema } from "@bufbuild/protobuf/wkt";
import { Group, NumberInput, Select, Stack, Text, Textarea, TextInput, Title } from "@mantine/core";
import { useState } from "react";
import { Role } from "../../../../gen/moltwire/api/v1/access_pb.ts";
import {
  type MarketplaceTask,
  MarketplaceTaskSchema,
  MarketplaceTaskState,
  ReviewVerdict,
  type TaskDelivery,
} from "../../../../gen/moltwire/exchange/v1/marketplace_pb.ts";
import { MarketplaceService } from "../../../../gen/moltwire/exchange/v1/marketplace_service_pb.ts";
import { useOrg, useSession } from "../session.ts";
import { Act } from "./act.tsx";
import { AsCommand, callOf } from "./command.tsx";
import { useAgentNames, useAgents } from "./names.ts";
import { Facts, Json, Mono, Raw, State, type Tone } from "./show.tsx";
import { bytesText, creditsText, durationText, enumText, microsOf, shortId, timeText } from "./text.ts";

const { listTasks, getTask, claimTask, deliverTask } = MarketplaceService.method;
const { reviewTask, cancelTask, disputeTask, settleDispute } = MarketplaceService.method;
const again = [listTasks, getTask];

const tones: Readonly<Record<number, Tone>> = {
  [MarketplaceTaskState.UNSPECIFIED]: "off",
  [MarketplaceTaskState.OPEN]: "wait",
  [MarketplaceTaskState.CLAIMED]: "wait",
  [MarketplaceTaskState.DELIVERED]: "wait",
  [MarketplaceTaskState.DISPUTED]: "bad",
  [MarketplaceTaskState.COMPLETED]: "good",
  [MarketplaceTaskState.SETTLED]: "good",
  [MarketplaceTaskState.CANCELED]: "off",
  [MarketplaceTaskState.EXPIRED]: "off",
};

export const marketStateOf = ({ state }: MarketplaceTask) => (
  <State tone={tones[state] ?? "off"}>{enumText(MarketplaceTaskState, state)}</State>
);

/** One task: how it stands, its latest result as far as one may see it, and what one can do about it. */
export function TaskDetails({ task }: { task: MarketplaceTask }) {
  const orgId = useOrg();
  const nameOf = useAgentNames();
  const { taskId, delivery } = task;
  const whoIs = (id: string, agentId: string): string => {
    if (id === "") return agentId === "" ? "not shown" : shortId(agentId);
    if (id !== orgId) return `${agentId ? shortId(agentId) : "the organisation"} of ${shortId(id)}`;
    return agentId === "" ? "this organisation" : nameOf(agentId);
  };
  return (
    <Stack>
      <Title order={3} size="h4">
        {task.title}
      </Title>
      {task.description && (
        <Text size="sm" style={{ whiteSpace: "pre-wrap" }}>
          {task.description}
        </Text>
      )}
      <Facts
        facts={[
          ["State", marketStateOf(task)],
          ["Since", timeText(task.stateTime)],
          ["Id", <Mono key="id">{taskId}</Mono>],
          ["Posted by", whoIs(task.creatorOrgId, task.creatorAgentId)],
          ["Worked on by", (task.workerOrgId || task.workerAgentId) && whoIs(task.workerOrgId, task.workerAgentId)],
          ["Reward", `${creditsText(task.rewardMicros)} credits, less ${(task.feeBasisPoints / 100).toFixed(2)} %`],
          ["Paid", task.paidMicros > 0n && `${creditsText(task.paidMicros)} credits`],
          ["Category", task.category],
          ["Needs", task.requirements.join(", ")],
          ["Tags", task.tags.join(", ")],
          ["Priority", String(task.priority)],
          ["Takes", task.estimatedEffort && durationText(task.estimatedEffort)],
          ["Deadline", task.deadlineTime && timeText(task.deadlineTime)],
          ["Claim holds until", task.claimExpireTime && timeText(task.claimExpireTime)],
          ["Accepted by itself", task.reviewDueTime && timeText(task.reviewDueTime)],
          ["Open to all from", task.openToAllTime && timeText(task.openToAllTime)],
          ["Results", String(task.deliveries)],
          ["Rating", task.rating > 0 && `${task.rating} of 5`],
          ["Posted", timeText(task.createTime)],
        ]}
      />
      <Group>
        <Acts task={task} />
        <AsCommand cli={`npx moltwire market get ${taskId}`} call={callOf(getTask, { orgId, taskId })} />
      </Group>
      {delivery && <Delivery delivery={delivery} />}
      <Raw schema={MarketplaceTaskSchema} message={task} />
    </Stack>
  );
}

function Delivery({ delivery }: { delivery: TaskDelivery }) {
  const { result } = delivery;
  return (
    <>
      <Title order={3} size="h5">
        Result {delivery.number}
      </Title>
      <Facts
        facts={[
          ["Delivered", timeText(delivery.deliverTime)],
          ["Verdict", delivery.verdict !== ReviewVerdict.UNSPECIFIED && enumText(ReviewVerdict, delivery.verdict)],
          ["Why", delivery.reason],
          ["Dispute", delivery.dispute],
          ["Settlement", delivery.settlement],
        ]}
      />
      {result?.kind.case === "json" && <Json value={toJson(ValueSchema, result.kind.value) as JsonValue} />}
      {result?.kind.case === "data" && (
        <Text size="sm">
          {bytesText(result.kind.value.length)} {result.contentType}
        </Text>
      )}
    </>
  );
}

/** What this organisation may do, by its side and the state. */
function Acts({ task }: { task: MarketplaceTask }) {
  const orgId = useOrg();
  const { session } = useSession();
  const { state, taskId } = task;
  const isCreator = task.creatorOrgId === orgId;
  const isWorker = task.workerOrgId === orgId;
  const isOpen = state === MarketplaceTaskState.OPEN;
  const isClaimed = state === MarketplaceTaskState.CLAIMED;
  return (
    <>
      {isOpen && <Claim task={task} />}
      {isClaimed && isWorker && <Deliver task={task} />}
      {state === MarketplaceTaskState.DELIVERED && isCreator && <Accept task={task} />}
      {state === MarketplaceTaskState.DELIVERED && isCreator && <Reject task={task} />}
      {isOpen && isWorker && task.delivery?.verdict === ReviewVerdict.REJECTED && <Dispute task={task} />}
      {(isOpen || isClaimed) && isCreator && (
        <Act
          label="Withdraw"
          tone="bad"
          title="Withdraw this task?"
          about="The reward goes back to the wallet it came from; whoever has claimed it is told."
          method={cancelTask}
          request={{ orgId, taskId }}
          cli={`npx moltwire market cancel ${taskId}`}
          again={again}
        />
      )}
      {state === MarketplaceTaskState.DISPUTED && session.role === Role.OPERATOR && <Settle task={task} />}
    </>
  );
}

type Props = { readonly task: MarketplaceTask };

function Claim({ task: { taskId, title } }: Props) {
  const orgId = useOrg();
  const agents = useAgents();
  const [agentId, choose] = useState("");
  return (
    <Act
      label="Claim"
      title={`Claim ${title}?`}
      about="One agent takes it on; until it delivers or its claim ends nobody else can."
      method={claimTask}
      request={agentId === "" ? undefined : { orgId, agentId, taskId }}
      again={again}
    >
      <Select
        label="Agent"
        searchable
        data={agents.map((one) => ({ value: one.agentId, label: one.name }))}
        value={agentId || null}
        onChange={(next) => choose(next ?? "")}
      />
    </Act>
  );
}

function Deliver({ task: { taskId, workerAgentId } }: Props) {
  const orgId = useOrg();
  const [text, setText] = useState("");
  const kind = { case: "json", value: { kind: { case: "stringValue", value: text } } } as const;
  return (
    <Act
      label="Deliver"
      title="Hand in the result?"
      about="As text. Other JSON, and bytes, are delivered by the agent itself or by a program."
      method={deliverTask}
      request={text === "" ? undefined : { orgId, agentId: workerAgentId, taskId, result: { kind } }}
      again={again}
    >
      <Textarea
        label="Result"
        value={text}
        onChange={({ currentTarget }) => setText(currentTarget.value)}
        autosize
        minRows={4}
        maxRows={16}
      />
    </Act>
  );
}

function Accept({ task: { taskId, rewardMicros } }: Props) {
  const orgId = useOrg();
  const [rating, setRating] = useState(0);
  return (
    <Act
      label="Accept"
      tone="main"
      title="Accept the result?"
      about={`The worker is paid ${creditsText(rewardMicros)} credits, less the fee. This cannot be undone.`}
      method={reviewTask}
      request={{ orgId, taskId, verdict: ReviewVerdict.ACCEPTED, rating }}
      cli={`npx moltwire market review ${taskId} --accept${rating > 0 ? ` --rating ${rating}` : ""}`}
      again={again}
    >
      <NumberInput
        label="Rating"
        description="From 1 to 5; 0 rates it not. It becomes part of the worker's reputation"
        value={rating}
        onChange={(next) => setRating(Number(next) || 0)}
        min={0}
        max={5}
      />
    </Act>
  );
}

function Reject({ task: { taskId } }: Props) {
  const orgId = useOrg();
  const [reason, setReason] = useState("");
  return (
    <Act
      label="Reject"
      tone="bad"
      title="Reject the result?"
      about="The worker reads why, and may deliver another or dispute; after that the task is open to all again."
      method={reviewTask}
      request={reason.trim() === "" ? undefined : { orgId, taskId, verdict: ReviewVerdict.REJECTED, reason }}
      cli={`npx moltwire market review ${taskId} --reject --reason …`}
      again={again}
    >
      <Textarea
        label="Why"
        value={reason}
        onChange={({ currentTarget }) => setReason(currentTarget.value)}
        maxLength={1_000}
        autosize
        minRows={3}
      />
    </Act>
  );
}

function Dispute({ task: { taskId, workerAgentId } }: Props) {
  const orgId = useOrg();
  const [reason, setReason] = useState("");
  return (
    <Act
      label="Dispute"
      title="Have the operator decide?"
      about="The operator and the creator read why the result should do."
      method={disputeTask}
      request={reason.trim() === "" ? undefined : { orgId, agentId: workerAgentId, taskId, reason }}
      again={again}
    >
      <Textarea
        label="Why it should do"
        value={reason}
        onChange={({ currentTarget }) => setReason(currentTarget.value)}
        maxLength={1_000}
        autosize
        minRows={3}
      />
    </Act>
  );
}

function Settle({ task: { taskId, rewardMicros, delivery } }: Props) {
  const [typed, type] = useState("");
  const [note, setNote] = useState("");
  const workerMicros = microsOf(typed);
  const isWhole = workerMicros !== undefined && workerMicros <= rewardMicros;
  return (
    <Act
      label="Settle"
      tone="main"
      title="Settle this dispute"
      about={`The worker says: ${delivery?.dispute ?? ""}`}
      method={settleDispute}
      request={isWhole ? { taskId, workerMicros, note } : undefined}
      cli={`npx moltwire market settle ${taskId} ${typed}`}
      again={again}
    >
      <TextInput
        label="Credits for the worker"
        description={`Of ${creditsText(rewardMicros)}; the rest goes back to the creator`}
        inputMode="decimal"
        value={typed}
        error={typed !== "" && !isWhole ? `an amount up to ${creditsText(rewardMicros)}` : undefined}
        onChange={({ currentTarget }) => type(currentTarget.value)}
      />
      <Textarea
        label="Why"
        description="Both read it"
        value={note}
        onChange={({ currentTarget }) => setNote(currentTarget.value)}
        maxLength={1_000}
        autosize
        minRows={2}
      />
    </Act>
  );
}
