import { Text, Title } from "@mantine/core";
import { Fragment } from "react";
import type { StepCost } from "../../../../gen/moltwire/bus/v1/cost_pb.ts";
import type { Lane } from "./lanes.ts";
import { creditsText, spanText } from "./text.ts";

type Props = {
  readonly lanes: readonly Lane[];
  readonly nameOf: (agentId: string) => string;
  readonly costs: readonly StepCost[];
};

const words = { good: "completed", bad: "failed", wait: "under way" };

/** The tasks of a trace over time: pale from the first step to the last, full while an agent had it. */
export function Waterfall({ lanes, nameOf, costs }: Props) {
  const fromMs = Math.min(...lanes.map(({ startMs }) => startMs));
  const wholeMs = Math.max(1, Math.max(...lanes.map(({ endMs }) => endMs)) - fromMs);
  // Room on the right for what stands after the last bar.
  const percent = (ms: number) => `${((ms - fromMs) / wholeMs) * 78}%`;
  const width = (startMs: number, endMs: number) => `${((endMs - startMs) / wholeMs) * 78}%`;
  const costOf = (taskId: string) =>
    costs.filter((step) => step.taskId === taskId && taskId !== "").reduce((sum, step) => sum + step.costMicros, 0n);
  return (
    <section aria-label="Timeline">
      <Title order={2} size="h4" mb="xs">
        Timeline
      </Title>
      <div className="waterfall">
        {lanes.map((lane) => {
          const cost = costOf(lane.taskId);
          const took = spanText(lane.endMs - lane.startMs);
          return (
            <Fragment key={lane.spanId}>
              <div className="label" style={{ paddingLeft: `${Math.min(lane.depth, 6) * 0.9}rem` }} title={lane.taskId}>
                <Text size="sm" truncate>
                  {lane.contractId || "task"}
                </Text>
                <Text size="xs" c="dimmed" truncate>
                  {lane.agentId ? nameOf(lane.agentId) : "no agent"}
                </Text>
              </div>
              <div
                className={`lane ${lane.state}`}
                role="img"
                aria-label={`${lane.contractId}: ${words[lane.state]}, ${took}, ${lane.attempts.length} attempts`}
              >
                <div className="bar" style={{ left: percent(lane.startMs), width: width(lane.startMs, lane.endMs) }} />
                {lane.attempts.map(({ startMs, endMs, failed }) => (
                  <div
                    key={startMs}
                    className={`attempt ${failed ? "bad" : ""}`}
                    style={{ left: percent(startMs), width: width(startMs, endMs) }}
                  />
                ))}
                <span className="after" style={{ left: percent(lane.endMs) }}>
                  {took}
                  {cost > 0n && ` · ${creditsText(cost)}`}
                </span>
              </div>
            </Fragment>
          );
        })}
      </div>
    </section>
  );
}
