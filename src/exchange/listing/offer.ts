/** What may be offered, and how it is stored. */
import { create, fromJsonString, type JsonValue, toJson, toJsonString } from "@bufbuild/protobuf";
import { ValueSchema } from "@bufbuild/protobuf/wkt";
import { type Offer, OfferSchema, type Pricing } from "../../../gen/moltwire/exchange/v1/listing_pb.ts";
import { findAgent } from "../../bus/agent-store.ts";
import { resolveContract } from "../../bus/resolve.ts";
import type { Queryable } from "../../db/db.ts";
import { badField, Fault, notFound } from "../../errors.ts";
import { deeperThan } from "../../rpc/json-depth.ts";
import { creditsText } from "../ledger/fault.ts";
import { isPayable, mostMicros, type Prices } from "./price.ts";

const maxExampleBytes = 16_384;
const maxExampleDepth = 24;

/** As the rule of prices takes them. */
export const pricesOf = ({ requestMicros = 0n, thousandTokensMicros = 0n, maxTokens }: Pricing): Prices => ({
  requestMicros,
  thousandTokensMicros,
  maxTokens: thousandTokensMicros > 0n ? maxTokens : 0n,
});

export const offerText = (offer: Offer): string => toJsonString(OfferSchema, offer);
export const offerOf = (text: string): Offer => fromJsonString(OfferSchema, text);

/** Without the examples, for lists. */
export const withoutExamples = ({ exampleInput: _input, exampleOutput: _output, ...rest }: Offer): Offer =>
  create(OfferSchema, rest);

/** Throws for what cannot be offered; what the proto says of it was checked before. */
export async function checkOffer(db: Queryable, orgId: string, offer: Offer): Promise<void> {
  checkPricing(offer.pricing!);
  const ids = offer.plans.map(({ planId }) => planId);
  const twice = ids.find((id, n) => ids.indexOf(id) !== n);
  if (twice !== undefined) throw badField("offer.plans", `two plans are called ${twice}`);
  checkExample("offer.example_input", offer.exampleInput);
  checkExample("offer.example_output", offer.exampleOutput);
  const ref = { contractId: offer.contractId, version: offer.contractVersion };
  const fields = { contract: "offer.contract_id", version: "offer.contract_version" };
  const contract = await resolveContract(db, orgId, ref, fields);
  if (contract.deprecate_ms !== null) {
    const message = `${ref.contractId}@${contract.version} is deprecated: offer a version that is not`;
    const metadata = { field: fields.version, contract_id: ref.contractId, contract_version: contract.version };
    throw new Fault("CONTRACT_DEPRECATED", message, metadata);
  }
  if (offer.agentId && !(await findAgent(db, orgId, offer.agentId))) throw notFound("agent", offer.agentId);
}

function checkPricing(pricing: Pricing): void {
  const { requestMicros, thousandTokensMicros, maxTokens } = pricing;
  if (requestMicros === undefined && thousandTokensMicros === undefined)
    throw badField("offer.pricing", "set request_micros, thousand_tokens_micros or both: nothing else has a price");
  if (thousandTokensMicros !== undefined && maxTokens === 0n)
    throw badField(
      "offer.pricing.max_tokens",
      "is required with a price for tokens: that much is set aside for each request",
    );
  if (!isPayable(pricesOf(pricing)))
    throw badField("offer.pricing", `one request could cost more than ${creditsText(mostMicros)} credits`);
}

function checkExample(field: string, example: Offer["exampleInput"]): void {
  if (!example) return;
  const json = jsonOf(field, example);
  if (deeperThan(json, maxExampleDepth)) throw badField(field, `nested more than ${maxExampleDepth} levels deep`);
  if (Buffer.byteLength(JSON.stringify(json)) > maxExampleBytes)
    throw badField(field, `at most ${maxExampleBytes} bytes as JSON`);
}

function jsonOf(field: string, example: NonNullable<Offer["exampleInput"]>): JsonValue {
  try {
    return toJson(ValueSchema, example);
  } catch {
    throw badField(field, "holds a number that is not finite or a value that is not set, which JSON cannot");
  }
}
