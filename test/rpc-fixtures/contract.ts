import { TrustTier } from "../../gen/moltwire/bus/v1/agent_pb.ts";
import { insertContract } from "../../src/bus/contract-store.ts";
import { schemaDigest } from "../../src/bus/schema/schema.ts";
import type { World } from "../harness.ts";

type Init = {
  readonly contractId: string;
  readonly capability?: string;
  readonly description?: string;
  readonly requiredTools?: readonly string[];
};

/** Puts version 1.0.0 of a contract that takes and gives anything into an organisation; gives its id. */
export async function addContract(
  world: World,
  orgId: string,
  { contractId, capability, description = "", requiredTools = [] }: Init,
) {
  const { db, clock } = world.server.app;
  await db.tx((tx) =>
    insertContract(tx, {
      org_id: orgId,
      contract_id: contractId,
      version: "1.0.0",
      capability: capability ?? contractId,
      description,
      input_schema: "{}",
      output_schema: "{}",
      input_schema_sha256: schemaDigest({}),
      output_schema_sha256: schemaDigest({}),
      security_class: TrustTier.PUBLIC_VENDOR,
      required_tools: JSON.stringify(requiredTools),
      timeout_ms: 10_000,
      repeatable: 1,
      max_retries: 0,
      backoff_ms: 1,
      max_backoff_ms: 1,
      approval_required: 0,
      fallbacks: "[]",
      create_ms: clock.now(),
      deprecate_ms: null,
      estimated_tokens: 0,
      max_tokens: 0,
      partner_agent_ids: "[]",
      peer_id: "",
      namespace: "",
    }),
  );
  return contractId;
}
