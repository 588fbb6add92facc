/** `moltwire status`: how the server is, in a few lines. */
import { durationMs } from "@bufbuild/protobuf/wkt";
import { type GetStatusResponse, StatusService } from "../../gen/moltwire/ops/v1/status_service_pb.ts";
import { addCall } from "./call.ts";
import type { Noun } from "./command.ts";
import { exitCodes } from "./exit-codes.ts";
import { paint, plain, span } from "./output.ts";
import { at, renderFacts } from "./table.ts";

/** Adds the command. */
export const status: Noun = (program) => {
  addCall(program, {
    name: "status",
    summary: "how the server is; more with the operator's key. Ends with 1 if it is not healthy",
    method: StatusService.method.getStatus,
    show: describe,
    exitCode: ({ healthy }) => (healthy ? exitCodes.ok : exitCodes.failed),
  });
};

function describe({ version, healthy, time, details }: GetStatusResponse): string[] {
  const health = healthy ? paint("green", "healthy") : paint("red", "not healthy; see the server's log");
  return renderFacts(`${paint("bold", "Moltwire")} ${plain(version)}  ${health}`, [
    ["time", at(time)],
    ...(details
      ? ([
          ["up", details.uptime ? span(durationMs(details.uptime)) : ""],
          ["storage", `${details.engine}, schema ${details.schemaVersion}`],
          ["at rest", details.encryptionAtRest ? "encrypted" : "not encrypted"],
          ["organisations", String(details.organizations)],
          ["agents", String(details.agents)],
          ["contracts", String(details.contracts)],
          ["open tasks", String(details.openTasks)],
          ["open streams", String(details.openStreams)],
        ] as const)
      : []),
  ]);
}
