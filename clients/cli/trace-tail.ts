/** `moltwire trace tail`: steps as they happen, over lost connections. */
import { toJson } from "@bufbuild/protobuf";
import { TraceEventSchema } from "../../gen/moltwire/bus/v1/trace_pb.ts";
import { TraceService } from "../../gen/moltwire/bus/v1/trace_service_pb.ts";
import { agentIdOf } from "./agent-name.ts";
import { connectClients } from "./connect.ts";
import { exitCodes } from "./exit-codes.ts";
import { follow } from "./follow.ts";
import { parseKind } from "./names.ts";
import { columns, print, printJson } from "./output.ts";
import { type ConnectionOptions, readSettings, UsageError } from "./settings.ts";
import { growingTree } from "./trace-tree.ts";

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

/** Prints steps, those of a task under those of the task it came from, until Ctrl-C, or until `--count` of them. A lost connection is taken up again after the last cursor. Returns the exit code. */
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
  const draw = growingTree();
  let seen = 0;
  const messages = follow(settings.url, options.after ?? "", (afterCursor, signal) => {
    const fromStart = afterCursor === "" && options.fromStart === true;
    return clients(TraceService).tailTraces({ ...wanted, afterCursor, fromStart }, { signal });
  });
  for await (const { event } of messages) {
    if (event.case !== "traceEvent") continue;
    if (options.json) printJson(toJson(TraceEventSchema, event.value), 0);
    else print(draw(event.value, columns()));
    seen += 1;
    if (seen === options.count) break;
  }
  return exitCodes.ok;
}
