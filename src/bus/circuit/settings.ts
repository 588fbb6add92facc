import { durationMs } from "@bufbuild/protobuf/wkt";
import type { BreakerSettings } from "../../../gen/moltwire/bus/v1/agent_pb.ts";
import type { Breaker } from "./circuit.ts";

const defaults: Breaker = { threshold: 5, windowMs: 60_000, openMs: 30_000, disabled: false };

/** What an agent's breaker is set to, with the defaults of BreakerSettings where it is not. */
export const breakerFrom = (settings: BreakerSettings | undefined): Breaker => ({
  threshold: settings?.failureThreshold || defaults.threshold,
  windowMs: settings?.window ? durationMs(settings.window) : defaults.windowMs,
  openMs: settings?.openDuration ? durationMs(settings.openDuration) : defaults.openMs,
  disabled: settings?.disabled ?? defaults.disabled,
});
