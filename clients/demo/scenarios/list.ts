/** The scenarios, in the order in which they run. */
import { UsageError } from "../../cli/settings.ts";
import { approval } from "./approval.ts";
import { breaker } from "./breaker.ts";
import { budget } from "./budget.ts";
import { deadLetter } from "./dead-letter.ts";
import { policy } from "./policy.ts";
import { research } from "./research.ts";
import type { Scenario } from "./scenario.ts";
import { tools } from "./tools.ts";
import { trace } from "./trace.ts";

const all: readonly Scenario[] = [
  { name: "research", run: research },
  { name: "policy", run: policy },
  { name: "tools", run: tools },
  { name: "budget", run: budget },
  { name: "breaker", run: breaker },
  { name: "dead-letter", run: deadLetter },
  { name: "trace", run: trace },
  { name: "approval", run: approval },
];

/** A scenario with its number, from 1. */
export type Numbered = Scenario & { readonly number: number };

const scenarios: readonly Numbered[] = all.map((scenario, at) => ({ ...scenario, number: at + 1 }));

/**
 * All, or the one of this number or name.
 *
 * @throws UsageError naming those there are.
 */
export function chooseScenarios(which?: string): readonly Numbered[] {
  if (which === undefined) return scenarios;
  const chosen = scenarios.filter(({ number, name }) => which === String(number) || which === name);
  if (chosen.length > 0) return chosen;
  const known = scenarios.map(({ number, name }) => `${number} ${name}`).join(", ");
  throw new UsageError(`--scenario ${which}: there is no such scenario`, `one of, by number or name: ${known}`);
}
