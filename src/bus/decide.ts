import type { JsonObject, JsonValue } from "@bufbuild/protobuf";
import { TraceEventKind } from "../../gen/moltwire/bus/v1/trace_pb.ts";
import type { App } from "../app.ts";
import type { Queryable } from "../db/db.ts";
import { Fault, notFound } from "../errors.ts";
import { findAgent } from "./agent-store.ts";
import type { Demand } from "./approval/gate.ts";
import { circuitRefusal } from "./circuit/refusal.ts";
import type { ContractRef, ContractRow } from "./contract-store.ts";
import { type Fallback, usableFallback } from "./fallback.ts";
import { jsonBytes, jsonFault } from "./payload.ts";
import { resolveContract } from "./resolve.ts";
import { route } from "./route.ts";
import type { Violation } from "./schema/schema.ts";
import type { Step } from "./trace-store.ts";
import { inputViolations } from "./violations.ts";

/** What is asked for. */
export type Wish = {
  readonly orgId: string;
  readonly contract: ContractRef;
  readonly input: JsonValue;
  readonly wantedAgentId: string;
};

/** The decision on a wish: the steps taken to it, and either the contract and first agent, or the refusal. */
export type Decision = { readonly steps: readonly Step[] } & (
  | {
      readonly contract: ContractRow;
      readonly targetAgentId: string;
      /** Who asks for an approval first, if anybody does. */
      readonly demand?: Demand | undefined;
      readonly refusal?: undefined;
    }
  | { readonly refusal: Fault }
);

/** Whatever a step of the decision needs to read and to write down. */
type Deciding = {
  readonly app: App;
  readonly db: Queryable;
  readonly wish: Wish;
  readonly now: number;
  readonly turn: number;
  readonly add: (kind: TraceEventKind, message: string, details: JsonObject, targetAgentId?: string) => void;
};

/**
 * The pipeline up to acceptance: input within limits → contract → input against its schema → agents → policy. It only reads, so that
 * `validate_only` and the accepting transaction share it.
 */
export async function decide(app: App, db: Queryable, wish: Wish, now: number, turn: number): Promise<Decision> {
  const steps: Step[] = [];
  const add: Deciding["add"] = (kind, message, details, targetAgentId) =>
    steps.push({ kind, timeMs: now, message, details, ...(targetAgentId && { targetAgentId }) });
  const deciding: Deciding = { app, db, wish, now, turn, add };
  try {
    checkSize(deciding);
    const contract = await checkContract(deciding);
    checkInput(deciding, contract);
    const targetAgentId = await chooseAgent(deciding, contract);
    checkPolicy(deciding, targetAgentId);
    return { steps, contract, targetAgentId, demand: demandOf(contract) };
  } catch (error) {
    if (!(error instanceof Fault)) throw error;
    add(TraceEventKind.REFUSED, error.message, { reason: error.reason, message: error.message, ...error.metadata });
    return { steps, refusal: error };
  }
}

function checkSize({ wish, add }: Deciding): void {
  const { contractId, version } = wish.contract;
  const fault = jsonFault(wish.input);
  const details = {
    contract_id: contractId,
    requested_version: version,
    ...(!fault && { input_bytes: jsonBytes(wish.input) }),
  };
  add(TraceEventKind.SUBMITTED, `asked for ${contractId}${version && `@${version}`}`, details);
  if (!fault) return;
  const metadata = { field: "input", limit: String(fault.limit), actual: String(fault.actual) };
  throw new Fault("PAYLOAD_TOO_LARGE", `input: ${fault.message}`, metadata, {
    fields: [{ field: "input", description: fault.message }],
  });
}

async function checkContract({ db, wish }: Deciding): Promise<ContractRow> {
  const contract = await resolveContract(db, wish.orgId, wish.contract);
  const { contract_id, version } = contract;
  if (contract.deprecate_ms !== null) {
    const metadata = { field: "contract_version", contract_id, contract_version: version };
    throw new Fault("CONTRACT_DEPRECATED", `${contract_id}@${version} is deprecated and takes no new tasks`, metadata);
  }
  return contract;
}

function checkInput({ app, wish, add }: Deciding, contract: ContractRow): void {
  const violations = inputViolations(app, contract, wish.input);
  const passed = violations.length === 0;
  const message = passed ? "the input fits the contract" : `the input breaks the contract: ${violations[0]!.message}`;
  add(TraceEventKind.INPUT_CHECKED, message, {
    contract_version: contract.version,
    violations: violations.map(({ path, keyword, message: what }) => ({ path, keyword, message: what })),
  });
  if (!passed) throw violationFault("input", violations, contract);
}

/** A payload breaks its schema: every field that is wrong, as `input.query`. */
export function violationFault(
  direction: "input" | "output",
  violations: readonly Violation[],
  contract: ContractRow,
): Fault {
  const fields = violations.map(({ path, keyword, message }) => ({
    field: fieldName(direction, path),
    description: message,
    reason: keyword,
  }));
  const first = fields[0]!;
  const metadata = {
    direction,
    field: first.field,
    keyword: first.reason,
    contract_id: contract.contract_id,
    contract_version: contract.version,
  };
  return new Fault("CONTRACT_VIOLATION", `${first.field}: ${first.description}`, metadata, { fields });
}

const fieldName = (direction: string, path: string): string =>
  path === "" || path.startsWith("[") ? direction + path : `${direction}.${path}`;

/** The first agent; of a fallback if nothing but open circuits keeps the contract's own agents from it. */
async function chooseAgent(deciding: Deciding, contract: ContractRow): Promise<string> {
  const { db, wish, now, turn, add } = deciding;
  const { orgId, wantedAgentId } = wish;
  if (wantedAgentId && !(await findAgent(db, orgId, wantedAgentId))) throw notFound("agent", wantedAgentId);
  const { candidates, blocked, considered, verdicts } = await route(db, { orgId, contract, wantedAgentId, turn, now });
  const { capability } = contract;
  const fallback = candidates.length === 0 && blocked.length > 0 ? await firstFallback(deciding, contract) : undefined;
  const first = candidates[0] ?? fallback?.candidates[0];
  const under = fallback ? ` under ${fallback.contract.contract_id}@${fallback.contract.version}` : "";
  const message = first
    ? `${first.name} will do it${under}`
    : `nobody can${blocked.length > 0 ? " now" : ""}: ${considered} with the capability ${capability}`;
  add(TraceEventKind.ROUTED, message, { capability, considered, candidates: [...verdicts] }, first?.agent_id);
  if (first) return first.agent_id;
  if (blocked.length > 0) throw circuitRefusal(blocked, now);
  const why = verdicts.map(({ name, why }) => `${String(name)} ${String(why)}`).join("; ");
  const lacking = wantedAgentId
    ? "the one that is wanted has not got it"
    : "give it to one with UpdateAgent or RegisterAgent";
  const advice = considered === 0 ? lacking : why;
  const metadata = {
    field: wantedAgentId ? "target_agent_id" : "contract_id",
    capability,
    considered: String(considered),
  };
  throw new Fault("NO_CAPABLE_AGENT", `no agent with the capability ${capability} can do it: ${advice}`, metadata);
}

const demandOf = (contract: ContractRow): Demand | undefined =>
  contract.approval_required === 0
    ? undefined
    : { byContract: true, policyIds: [], reasons: [`${contract.contract_id} asks for an approval of each task`] };

async function firstFallback(
  { app, db, wish, now, turn }: Deciding,
  { fallbacks }: ContractRow,
): Promise<Fallback | undefined> {
  for (const ref of JSON.parse(fallbacks) as ContractRef[]) {
    const fallback = await usableFallback(app, db, { ...wish, turn, now }, ref);
    if (fallback) return fallback;
  }
  return undefined;
}

/** Inside one organisation everything is allowed until policies are built; the trace says so. */
function checkPolicy({ add }: Deciding, targetAgentId: string): void {
  const details = {
    verdict: "ALLOW",
    policy_ids: ["builtin/inside-one-org"],
    reasons: ["caller and agent are of one organisation; no other policies exist yet"],
  };
  add(TraceEventKind.POLICY_DECIDED, "allowed: inside one organisation (no policies yet)", details, targetAgentId);
}
