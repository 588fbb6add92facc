/** The decision of the organisation that is asked: may this come in, and who does it? It only reads. */
import type { JsonValue } from "@bufbuild/protobuf";
import { PolicyVerdict } from "../../../gen/moltwire/bus/v1/policy_pb.ts";
import type { App } from "../../app.ts";
import type { AgentRow } from "../../bus/agent-store.ts";
import type { ContractRow } from "../../bus/contract-store.ts";
import { lastModel } from "../../bus/cost/cost-store.ts";
import { costMicros, unknownUsage } from "../../bus/cost/price.ts";
import { reserveTokens } from "../../bus/cost/price-attempt.ts";
import { rateFor } from "../../bus/cost/rate-store.ts";
import { type Decision, decide, refusedStep, type Wish } from "../../bus/decide.ts";
import type { Origin } from "../../bus/policy/decide-task.ts";
import { asForeigner } from "../../bus/policy/entity.ts";
import type { Queryable } from "../../db/db.ts";
import type { Fault } from "../../errors.ts";
import type { TraceContext } from "../../rpc/trace-context.ts";
import { type GrantRow, termsOf } from "../grant/store.ts";
import { beyondBudgetLeft, beyondCap, beyondTerms, tierOf } from "./terms.ts";

/** A request as it comes to the organisation that is to do the work, which is the contract's and the grant's. */
export type Entry = {
  readonly taskId: string;
  readonly callerOrgId: string;
  readonly callerAgentId: string;
  /** Undefined: an administrator, for no agent. */
  readonly caller: AgentRow | undefined;
  /** By which door it came. */
  readonly origin: Origin;
  /** What policies of the caller's organisation said. */
  readonly callerVerdict: PolicyVerdict;
  readonly grant: GrantRow;
  readonly contract: ContractRow;
  readonly input: JsonValue;
  readonly wantedAgentId: string;
  readonly deadlineMs: number | null;
  /** What it may cost at most, in micro-credits, where whoever asks has set a bound of its own. */
  readonly budgetLeftMicros?: number | undefined;
  /** The span of the work, below that of the task. */
  readonly trace: TraceContext;
  /** Whose turn it is among the agents. */
  readonly turn: number;
};

export type Weighed = {
  readonly decision: Decision;
  readonly refusal?: Fault;
  /** What it is expected to cost by the rates of the organisation, and what at most. */
  readonly price: Price;
};

/** In micro-credits; undefined: the contract does not say, and its tokens cost something. */
export type Price = { readonly micros: number; readonly mostMicros: number | undefined };

const nothing: Price = { micros: 0, mostMicros: 0 };

/** The wish as the organisation has it that is asked. */
export const wishOf = (entry: Entry): Wish => ({
  orgId: entry.grant.org_id,
  contract: { contractId: entry.contract.contract_id, version: entry.contract.version },
  input: entry.input,
  wantedAgentId: entry.wantedAgentId,
  callerAgentId: entry.callerAgentId,
  origin: entry.origin,
  grantId: entry.grant.grant_id,
  from: { orgId: entry.callerOrgId, caller: entry.caller && asForeigner(entry.caller) },
  allows: (contract) => beyondTerms(entry.grant, tierOf(entry.caller), contract) === undefined,
});

/** The terms of the grant first, then the pipeline of its organisation, then the price. */
export async function weigh(app: App, db: Queryable, entry: Entry, now: number): Promise<Weighed> {
  const { grant, contract, caller, turn } = entry;
  const beyond = beyondTerms(grant, tierOf(caller), contract);
  const { UNSPECIFIED: verdict } = PolicyVerdict;
  if (beyond) return refusedBy(beyond, { steps: [], decisions: [], verdict, refusal: beyond }, now);
  const decision = await decide(app, db, wishOf(entry), now, turn);
  if (decision.refusal) return { decision, refusal: decision.refusal, price: nothing };
  const { doneUnder, targetAgentId } = decision;
  const isBound = termsOf(grant).priceCapMicros !== undefined || entry.budgetLeftMicros !== undefined;
  // A cap that is written meanwhile is held against it when the attempt begins.
  const isPriced = isBound || reserveTokens(doneUnder) > 0;
  const price = isPriced ? await priceOf(db, doneUnder, targetAgentId, now) : nothing;
  const { mostMicros } = price;
  const dear = beyondCap(grant, mostMicros) ?? beyondBudgetLeft(grant, entry.budgetLeftMicros, mostMicros);
  return dear ? refusedBy(dear, decision, now) : { decision, price };
}

const refusedBy = (refusal: Fault, decision: Decision, now: number): Weighed => ({
  decision: { ...decision, steps: [...decision.steps, refusedStep(refusal, now)] },
  refusal,
  price: nothing,
});

/**
 * What the tokens that are set aside, and the most that the contract declares, cost by the rate of the agent's work with the model it reported last, all being of the dearer kind. A contract
 * that declares an estimate alone is held to that.
 */
export async function priceOf(db: Queryable, contract: ContractRow, agentId: string, now: number): Promise<Price> {
  const { org_id: orgId, max_tokens: maxTokens } = contract;
  const model = await lastModel(db, orgId, agentId);
  const rate = await rateFor(db, orgId, agentId, model, now);
  const cost = (tokens: number) => costMicros(unknownUsage(tokens, model, rate), rate);
  const tokens = reserveTokens(contract);
  const most = maxTokens || tokens;
  const isFree = cost(1_000) === 0;
  return { micros: cost(tokens), mostMicros: most > 0 || isFree ? cost(most) : undefined };
}
