import { fromJson, type JsonValue, toJson } from "@bufbuild/protobuf";
import { ValueSchema } from "@bufbuild/protobuf/wkt";
import { Anchor, Group, Stack, Text, Textarea } from "@mantine/core";
import { Link } from "@tanstack/react-router";
import { useState } from "react";
import { type Task, TaskState } from "../../../../gen/moltwire/bus/v1/task_pb.ts";
import { BillingService } from "../../../../gen/moltwire/exchange/v1/billing_service_pb.ts";
import { CatalogService } from "../../../../gen/moltwire/exchange/v1/catalog_service_pb.ts";
import type { Listing } from "../../../../gen/moltwire/exchange/v1/listing_pb.ts";
import { useOrg } from "../session.ts";
import { Act } from "./act.tsx";
import { typedJson } from "./publish.tsx";
import { Payload } from "./reveal.tsx";
import { Json, State } from "./show.tsx";
import { creditsText, enumText } from "./text.ts";

const { invokeListing, getListing } = CatalogService.method;

/** Has the work done once, for its price, and shows what came of it. */
export function Invoke({ listing: { listingId, offer } }: { listing: Listing }) {
  const orgId = useOrg();
  const example = offer?.exampleInput ? toJson(ValueSchema, offer.exampleInput) : null;
  const [text, setText] = useState(() => JSON.stringify(example, null, 2));
  const [task, setTask] = useState<Task>();
  const input = typedJson(text);
  const maxPriceMicros = offer?.pricing?.requestMicros ?? 0n;
  return (
    <>
      <Act
        label="Invoke"
        tone="main"
        title={`Have ${offer?.title} done?`}
        about={`The organisation pays at most ${creditsText(maxPriceMicros)} credits for it, and nothing if it fails.`}
        method={invokeListing}
        request={input && { orgId, listingId, maxPriceMicros, input: fromJson(ValueSchema, input.value ?? null) }}
        again={[BillingService.method.getBalance, BillingService.method.listTransactions, getListing]}
        onDone={(answer) => setTask(answer.task)}
      >
        <Textarea
          label="Input"
          description="JSON that the provider’s contract takes; the request is a real one"
          value={text}
          error={input ? undefined : "this is no JSON"}
          onChange={({ currentTarget }) => setText(currentTarget.value)}
          autosize
          minRows={4}
          maxRows={16}
          classNames={{ input: "mono" }}
          data-autofocus
        />
      </Act>
      {task && <Came task={task} />}
    </>
  );
}

function Came({ task }: { task: Task }) {
  const isDone = task.state === TaskState.COMPLETED;
  return (
    <Stack gap="xs" w="100%" role="status">
      <Group>
        <State tone={isDone ? "good" : task.state > TaskState.COMPLETED ? "bad" : "wait"}>
          {enumText(TaskState, task.state)}
        </State>
        <Text size="sm">for {creditsText(task.receipt?.amountMicros ?? 0n)} credits</Text>
        <Anchor component={Link} to={`/traces/${task.traceId}`} size="sm">
          Its trace
        </Anchor>
      </Group>
      {task.error && <Text size="sm">{task.error.message}</Text>}
      {isDone && (
        <Payload subject={{ case: "taskId", value: task.taskId }}>
          <Json value={task.output && (toJson(ValueSchema, task.output) as JsonValue)} />
        </Payload>
      )}
    </Stack>
  );
}
