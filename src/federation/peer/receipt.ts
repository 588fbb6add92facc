/** What work for another server used and cost: written and signed by the server that did it, checked by the one that asked. */
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { TaskState } from "../../../gen/moltwire/bus/v1/task_pb.ts";
import {
  type PeerReceipt,
  PeerReceiptSchema,
  type PeerResult,
  type SignedMessage,
} from "../../../gen/moltwire/federation/v1/peer_envelope_pb.ts";
import type { Amount } from "../../bus/budget/use-store.ts";
import type { TaskRow } from "../../bus/task-store.ts";
import { envelopeVersion } from "./door.ts";
import { sha256 } from "./http-signature.ts";
import type { SigningKey } from "./key.ts";
import { openMessage, signMessage } from "./signed-message.ts";

/** Both servers, by their audiences. */
type Between = { readonly origin: string; readonly audience: string };

/** Of a task that has ended, as the organisation has it that stands for the server that asked. */
export function writeReceipt(
  key: SigningKey,
  { origin, audience }: Between,
  row: TaskRow,
  asked: { readonly callId: string; readonly payload: Uint8Array },
  outputJson: Uint8Array,
  now: number,
): SignedMessage {
  return signMessage(key, PeerReceiptSchema, {
    version: envelopeVersion,
    origin,
    audience,
    callId: asked.callId,
    taskId: row.task_id,
    traceId: row.trace_id,
    orgId: row.target_org_id,
    contractId: row.contract_id,
    contractVersion: row.contract_version,
    state: row.state as TaskState,
    usage: { inputTokens: BigInt(row.input_tokens), outputTokens: BigInt(row.output_tokens), model: "" },
    costMicros: BigInt(row.cost_micros),
    requestSha256: sha256(asked.payload),
    outputSha256: outputJson.length > 0 ? sha256(outputJson) : new Uint8Array(),
    createTime: timestampFromMs(now),
  });
}

/** What a receipt has to be of. */
export type Expected = Between & {
  readonly callId: string;
  readonly traceId: string;
  readonly orgId: string;
  readonly contractId: string;
  /** SHA-256 of the payload of the envelope. */
  readonly requestSha256: Uint8Array;
};

/** The most that is believed of tokens, as of any agent. */
const maxTokens = 1_000_000_000_000n;
const maxMicros = 1_000_000_000_000_000n;

/** The receipt of a result, or what is wrong with it. */
export function readReceipt(
  { receipt: signed, state, outputJson }: PeerResult,
  publicKey: Uint8Array,
  expected: Expected,
): PeerReceipt | string {
  if (!signed) return "it has no receipt";
  const receipt = openMessage(signed, publicKey, PeerReceiptSchema);
  if (!receipt) return "its receipt is not signed by it";
  if (receipt.version !== envelopeVersion) return "its receipt is of another version";
  const { origin, audience, callId, traceId, orgId, contractId } = receipt;
  const isOf = (name: keyof typeof said) => said[name] === expected[name];
  const said = { origin, audience, callId, traceId, orgId, contractId };
  const wrong = (Object.keys(said) as (keyof typeof said)[]).find((name) => !isOf(name));
  if (wrong) return `its receipt is of another ${wrong}`;
  if (!same(receipt.requestSha256, expected.requestSha256)) return "its receipt is of another request";
  if (receipt.state !== state) return "its receipt is of another end";
  if (!same(receipt.outputSha256, outputJson.length > 0 ? sha256(outputJson) : new Uint8Array()))
    return "its receipt is of another output";
  const { inputTokens = 0n, outputTokens = 0n } = receipt.usage ?? {};
  const counts = [inputTokens, outputTokens];
  if (counts.some((n) => n < 0n || n > maxTokens)) return "the tokens of its receipt are no numbers of tokens";
  if (receipt.costMicros < 0n || receipt.costMicros > maxMicros) return "the cost of its receipt is none";
  return receipt;
}

/** What a receipt counts with. */
export type Counted = { readonly inputTokens: number; readonly outputTokens: number; readonly costMicros: number };

/**
 * What of a receipt is counted here: all of it, or what was left for the work when it was asked for, tokens that were read first. A peer can write any figures, and must not use up by them what is
 * not for it; what it says beyond stays in the trace.
 */
export function countedOf({ usage, costMicros }: PeerReceipt, most: Amount): Counted {
  const inputTokens = Math.min(Number(usage?.inputTokens ?? 0n), most.tokens);
  const outputTokens = Math.min(Number(usage?.outputTokens ?? 0n), most.tokens - inputTokens);
  return { inputTokens, outputTokens, costMicros: Math.min(Number(costMicros), most.micros) };
}

const same = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0;
