import type { Logger } from "pino";
import type { Clock } from "../clock.ts";
import type { Config } from "../config.ts";
import type { Ids } from "../ids.ts";
import type { Metrics } from "../ops/metrics.ts";
import { version } from "../version.ts";
import { openExporter, type SpanResult } from "./exporter.ts";
import type { Telemetry } from "./span.ts";

type Needs = { readonly clock: Clock; readonly ids: Ids; readonly log: Logger; readonly metrics: Metrics };

/** The export of spans, if the settings ask for it. */
export async function openTelemetry(
  { otlpEndpoint, otlpHeaders }: Pick<Config, "otlpEndpoint" | "otlpHeaders">,
  serverId: string,
  { clock, ids, log, metrics }: Needs,
): Promise<Telemetry | undefined> {
  let waiting = () => 0;
  metrics.gauge({ name: "moltwire_otlp_queue", help: "Spans that wait to be exported", read: () => waiting() });
  const spans = metrics.counter("moltwire_otlp_spans_total", "Spans by what became of them", ["result"]);
  const count = (result: SpanResult, number: number) => spans.inc({ result }, number);
  for (const result of ["sent", "rejected", "failed", "dropped"] as const) count(result, 0);
  if (!otlpEndpoint) return undefined;
  const { openOtlp } = await import("./otlp.ts");
  const resource = { "service.name": "moltwire", "service.version": version, "service.instance.id": serverId };
  const otlp = openOtlp({ endpoint: otlpEndpoint, headers: otlpHeaders, resource, version });
  const exporter = openExporter({ send: otlp.send, clock, chance: ids.chance, log, count });
  waiting = exporter.waiting;
  return {
    ended: exporter.ended,
    async close(graceMs) {
      await exporter.close(graceMs);
      await otlp.close();
    },
  };
}
