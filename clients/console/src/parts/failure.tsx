import { ConnectError } from "@connectrpc/connect";
import { Alert, Text } from "@mantine/core";
import { ErrorInfoSchema } from "../../../../gen/google/rpc/error_details_pb.ts";

/** Why a call failed: in words, with its reason and trace. */
export function Failure({ error }: { error: unknown }) {
  const failure = ConnectError.from(error);
  const [info] = failure.findDetails(ErrorInfoSchema);
  return (
    <Alert role="alert" color="red" variant="outline" title={info?.reason ?? "No answer"}>
      <Text size="sm">{failure.rawMessage}</Text>
      {info?.metadata.trace_id && (
        <Text size="xs" c="dimmed" className="mono">
          trace {info.metadata.trace_id}
        </Text>
      )}
    </Alert>
  );
}
