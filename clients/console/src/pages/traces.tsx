import { timestampMs } from "@bufbuild/protobuf/wkt";
import { Text, TextInput } from "@mantine/core";
import { useNavigate } from "@tanstack/react-router";
import { type Trace, TraceSchema } from "../../../../gen/moltwire/bus/v1/trace_pb.ts";
import { TraceService } from "../../../../gen/moltwire/bus/v1/trace_service_pb.ts";
import { useRefresh } from "../live/use-live.ts";
import { useWord } from "../parts/address.ts";
import { callOf } from "../parts/command.tsx";
import { type Column, List } from "../parts/list.tsx";
import { useAgentNames } from "../parts/names.ts";
import { usePages } from "../parts/pages.ts";
import { Empty, Head, Mono, State } from "../parts/show.tsx";
import { agoText, countText, shortId, spanText } from "../parts/text.ts";
import { useOrg } from "../session.ts";

const { listTraces } = TraceService.method;
/** How many rows are read again as things happen. */
const followed = 500;

/** Everything that was asked for, newest first. */
export function Traces() {
  const orgId = useOrg();
  const navigate = useNavigate();
  const nameOf = useAgentNames();
  const [contractId, setContractId] = useWord("contract");
  const [agentId] = useWord("agent");
  const request = { orgId, contractId, agentId };
  const traces = usePages(listTraces, request, (page) => page.traces, { pageSize: 250 });
  // Who has gone far back reads on there; reading all of it again at each step would be many pages.
  const isFarBack = traces.list.rows.length > followed;
  useRefresh(isFarBack ? [] : [listTraces], ({ from }) => from === "steps");
  const columns: readonly Column<Trace>[] = [
    { name: "State", show: (trace) => <TraceState trace={trace} /> },
    { name: "Contract", show: (trace) => trace.contractId },
    { name: "Asked by", wide: true, show: (trace) => nameOf(trace.openerAgentId) },
    { name: "Tasks", wide: true, right: true, show: (trace) => trace.tasks },
    { name: "Took", wide: true, right: true, show: tookText },
    { name: "Age", right: true, show: (trace) => agoText(trace.startTime) },
    { name: "Trace", wide: true, show: (trace) => <Mono>{shortId(trace.traceId)}</Mono> },
  ];
  return (
    <>
      <Head
        title="Traces"
        cli={`npx moltwire trace list${contractId && ` --contract ${contractId}`}`}
        call={callOf(listTraces, request)}
        onRefresh={traces.refetch}
      >
        <TextInput
          size="xs"
          aria-label="Contract"
          placeholder="Contract, by its exact id"
          value={contractId}
          onChange={(event) => setContractId(event.currentTarget.value)}
        />
      </Head>
      {isFarBack && (
        <Text size="sm" mb="xs" role="status">
          {countText(traces.list.rows.length)} are shown. New ones come with Refresh.
        </Text>
      )}
      <List
        label="Traces"
        {...traces.list}
        schema={TraceSchema}
        columns={columns}
        keyOf={({ traceId }) => traceId}
        onOpen={({ traceId }) => void navigate({ to: "/traces/$traceId", params: { traceId } })}
        empty={
          <Empty title="No traces" command={`npx moltwire submit echo '{"hello":"world"}'`}>
            {contractId
              ? "No trace begins with this contract. Without the filter there may be some; or submit a task:"
              : "Each request for work is a trace, with every step that was taken for it. To make one, submit a task:"}
          </Empty>
        }
      />
    </>
  );
}

/** How a trace stands, in a word. */
export function TraceState({ trace: { tasks, openTasks, failedTasks } }: { trace: Trace }) {
  if (openTasks > 0) return <State tone="wait">under way</State>;
  if (failedTasks > 0) return <State tone="bad">failed</State>;
  if (tasks === 0) return <State tone="bad">refused</State>;
  return <State tone="good">done</State>;
}

/** From its first event to its last. */
export const tookText = ({ startTime, updateTime }: Trace): string =>
  startTime && updateTime ? spanText(timestampMs(updateTime) - timestampMs(startTime)) : "–";
