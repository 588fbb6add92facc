/** `moltwire trace tail`: steps as they happen, over lost connections. */
import { toJson } from "@bufbuild/protobuf";
import { type TraceEvent, TraceEventSchema } from "../../gen/moltwire/bus/v1/trace_pb.ts";
import { TraceService } from "../../gen/moltwire/bus/v1/trace_service_pb.ts";
import { agentIdOf } from "./agent-name.ts";
import { connectClients } from "./connect.ts";
import { exitCodes } from "./exit-codes.ts";
import { follow } from "./follow.ts";
import { kindName, parseKind, timeMs } from "./names.ts";
import { columns, fit, paint, plain, print, printJson } from "./output.ts";
import { type ConnectionOptions, readSettings, UsageError } from "./settings.ts";

/** The options of `trace tail`. */
export type TailOptions = ConnectionOptions & {
  readonly trace?: string;
  readonly agent?: string;
  readonly contract?: string;
  readonly kind?: readonly string[];
  readonly fromStart?: boolean;
  readonly after?: string;
  /** End after so many steps. */
  readonly count?: number;
};

/** Prints steps until Ctrl-C, or until `--count` of them. A lost connection is taken up again after the last cursor. Returns the exit code. */
export async function traceTail(options: TailOptions): Promise<number> {
  const settings = readSettings(options, process.env);
  const traceId = options.trace?.toLowerCase() ?? "";
  if (!/^([0-9a-f]{32})?$/.test(traceId))
    throw new UsageError(`--trace ${options.trace} is no trace's id`, "32 hexadecimal digits");
  const clients = connectClients(settings);
  const orgId = options.org ?? "";
  const kinds = (options.kind ?? []).map(parseKind);
  const agentId = await agentIdOf(options.agent, { clients, orgId });
  const wanted = { orgId, traceId, agentId, contractId: options.contract ?? "", kinds };
  let seen = 0;
  const messages = follow(settings.url, options.after ?? "", (afterCursor, signal) => {
    const fromStart = afterCursor === "" && options.fromStart === true;
    return clients(TraceService).tailTraces({ ...wanted, afterCursor, fromStart }, { signal });
  });
  for await (const { event } of messages) {
    if (event.case !== "traceEvent") continue;
    show(event.value, options.json === true);
    seen += 1;
    if (seen === options.count) break;
  }
  return exitCodes.ok;
}

function show(event: TraceEvent, json: boolean): void {
  if (json) {
    printJson(toJson(TraceEventSchema, event), 0);
    return;
  }
  const time = new Date(timeMs(event)).toISOString().slice(11, 23);
  const head = `${time}  ${event.traceId.slice(0, 8)}  ${kindName(event.kind).padEnd(14)}  ${plain(event.contractId)}`;
  print(`${head}  ${paint("dim", fit(plain(event.message), Math.max(20, columns() - head.length - 2)))}`);
}
