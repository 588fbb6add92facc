/** The scenarios, in the order in which they run. */
import { UsageError } from "../../cli/settings.ts";
import { apiKey } from "./api-key.ts";
import { approval } from "./approval.ts";
import { breaker } from "./breaker.ts";
import { budget } from "./budget.ts";
import { crossOrg } from "./cross-org.ts";
import { deadLetter } from "./dead-letter.ts";
import { discovery } from "./discovery.ts";
import { grant } from "./grant.ts";
import { invoke } from "./invoke.ts";
import { isolation } from "./isolation.ts";
import { overage } from "./overage.ts";
import { peers } from "./peers.ts";
import { policy } from "./policy.ts";
import { publication } from "./publication.ts";
import { quota } from "./quota.ts";
import { rating } from "./rating.ts";
import { register } from "./register.ts";
import { research } from "./research.ts";
import { revocation } from "./revocation.ts";
import type { Scenario } from "./scenario.ts";
import { subscription } from "./subscription.ts";
import { tools } from "./tools.ts";
import { topUp } from "./top-up.ts";
import { trace } from "./trace.ts";

/** A new one goes at the end, so that each keeps its number. */
const all: readonly Scenario[] = [
  { name: "research", run: research },
  { name: "policy", run: policy },
  { name: "tools", run: tools },
  { name: "budget", run: budget },
  { name: "breaker", run: breaker },
  { name: "dead-letter", run: deadLetter },
  { name: "trace", run: trace },
  { name: "approval", run: approval },
  { name: "register", run: register },
  { name: "isolation", run: isolation },
  { name: "grant", run: grant },
  { name: "cross-org", run: crossOrg },
  { name: "quota", run: quota },
  { name: "revocation", run: revocation },
  { name: "api-key", run: apiKey },
  { name: "publication", run: publication },
  { name: "discovery", run: discovery },
  { name: "top-up", run: topUp },
  { name: "invoke", run: invoke },
  { name: "subscription", run: subscription },
  { name: "overage", run: overage },
  { name: "rating", run: rating },
  { name: "peers", run: peers },
];

/** A scenario with its number, from 1. */
export type Numbered = Scenario & { readonly number: number };

/** All of them. */
export const scenarios: readonly Numbered[] = all.map((scenario, at) => ({ ...scenario, number: at + 1 }));

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
