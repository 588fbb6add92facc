import { type JsonValue, toJson } from "@bufbuild/protobuf";
import { type Value, ValueSchema } from "@bufbuild/protobuf/wkt";
import { useQuery } from "@connectrpc/connect-query";
import { Button, Stack, Title } from "@mantine/core";
import { useState } from "react";
import { BusService } from "../../../../gen/moltwire/bus/v1/bus_service_pb.ts";
import { useOrg } from "../session.ts";
import { Failure } from "./failure.tsx";
import { Payload, useIsKept } from "./reveal.tsx";
import { Json } from "./show.tsx";

/** What went into a task and came out of it, once it is asked for. */
export function TaskPayloads({ taskId }: { taskId: string }) {
  const orgId = useOrg();
  const isKept = useIsKept();
  const [isAsked, ask] = useState(false);
  const { data, error } = useQuery(BusService.method.getTask, { orgId, taskId }, { enabled: isAsked });
  if (!isKept && !isAsked)
    return (
      <Button variant="default" onClick={() => ask(true)}>
        Show input and output
      </Button>
    );
  if (error) return <Failure error={error} />;
  const task = data?.task;
  return (
    <Payload subject={{ case: "taskId", value: taskId }}>
      {task && (
        <Stack gap="xs">
          <Part title="Input" value={task.input} />
          {task.output && <Part title="Output" value={task.output} />}
        </Stack>
      )}
    </Payload>
  );
}

const Part = ({ title, value }: { title: string; value: Value | undefined }) => (
  <>
    <Title order={3} size="h5">
      {title}
    </Title>
    <Json value={value && (toJson(ValueSchema, value) as JsonValue)} />
  </>
);
