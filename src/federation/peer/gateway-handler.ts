import type { MessageInitShape } from "@bufbuild/protobuf";
import { durationFromMs, durationMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import { ErrorReason } from "../../../gen/moltwire/api/v1/error_reason_pb.ts";
import type { TaskState } from "../../../gen/moltwire/bus/v1/task_pb.ts";
import {
  type PeerCall,
  type PeerContractSchema,
  type PeerListContracts,
  PeerReplySchema,
  type PeerResultSchema,
} from "../../../gen/moltwire/federation/v1/peer_envelope_pb.ts";
import type { PeerGatewayService } from "../../../gen/moltwire/federation/v1/peer_gateway_service_pb.ts";
import type { App } from "../../app.ts";
import type { ContractRow } from "../../bus/contract-store.ts";
import type { Dispatcher } from "../../bus/dispatch.ts";
import { isTerminal, openFault, openJson } from "../../bus/task-store.ts";
import { openContracts } from "../gateway/open-contracts.ts";
import { type Arrival, checkPeer, envelopeVersion, letIn } from "./door.ts";
import { audienceOf, signingKey } from "./identity.ts";
import { contractsPerPage } from "./page.ts";
import { writeReceipt } from "./receipt.ts";
import { signMessage } from "./signed-message.ts";
import { acceptCall, cancelCall, followCall } from "./work.ts";

type Body = NonNullable<Extract<MessageInitShape<typeof PeerReplySchema>, { $typeName?: never }>["body"]>;

export const peerGatewayHandler = (app: App, dispatcher: Dispatcher): ServiceImpl<typeof PeerGatewayService> => ({
  async handlePeerCall(request, context) {
    const arrival = await letIn(app, request.envelope!, context);
    const { peer, envelope } = arrival;
    const body = await answer(app, dispatcher, arrival, context.signal);
    // Work can take long, and what comes of it is not for a peer that was removed meanwhile.
    await checkPeer(app.db.query, arrival);
    const reply = signMessage(await signingKey(app), PeerReplySchema, {
      version: envelopeVersion,
      origin: audienceOf(app),
      audience: peer.audience,
      createTime: timestampFromMs(app.clock.now()),
      inReplyTo: envelope.nonce,
      body,
    });
    return { reply };
  },
});

async function answer(app: App, dispatcher: Dispatcher, arrival: Arrival, signal: AbortSignal): Promise<Body> {
  const { body } = arrival.envelope;
  switch (body.case) {
    case "call":
      return { case: "result", value: await work(app, dispatcher, arrival, body.value, signal) };
    case "cancel": {
      const state = await cancelCall(app, arrival, body.value.callId);
      return { case: "cancelResult", value: { ...(state !== undefined && { state }) } };
    }
    case "listContracts":
      return { case: "contracts", value: await listContracts(app, arrival, body.value) };
    default:
      throw new Error("an envelope without a body was let in");
  }
}

async function work(
  app: App,
  dispatcher: Dispatcher,
  arrival: Arrival,
  call: PeerCall,
  signal: AbortSignal,
): Promise<MessageInitShape<typeof PeerResultSchema>> {
  const taskId = await acceptCall(app, dispatcher, arrival, call);
  const row = await followCall(app, arrival, taskId, durationMs(call.timeout!), signal);
  const state = row.state as TaskState;
  if (!isTerminal(state)) return { state };
  const { org_id: orgId } = row;
  const output = row.output ? JSON.stringify(openJson(app, orgId, taskId, "output", row.output)) : "";
  const outputJson = Buffer.from(output);
  const fault = row.error ? openFault(app, orgId, taskId, row.error) : undefined;
  const between = { origin: audienceOf(app), audience: arrival.peer.audience };
  const asked = { callId: call.callId, payload: arrival.signed.payload };
  return {
    state,
    outputJson,
    reason: fault?.reason ?? ErrorReason.UNSPECIFIED,
    message: fault?.message ?? "",
    receipt: writeReceipt(await signingKey(app), between, row, asked, outputJson, app.clock.now()),
  };
}

/** As GatewayService/ListContracts to the organisation that stands for the peer, and how long the work may take. */
async function listContracts(app: App, { peer }: Arrival, { orgId, pageToken }: PeerListContracts) {
  const scope = ["PeerListContracts", peer.org_id, orgId];
  const after = pageToken ? app.cursors.decode(scope, pageToken, "page_token") : undefined;
  const filter = { grantId: "", targetOrgId: orgId, capability: "" };
  const now = app.clock.now();
  const { rows, next } = await openContracts(app.db.query, peer.org_id, filter, after, contractsPerPage, now);
  return {
    contracts: rows.map(({ contract }) => toPeerContract(contract)),
    nextPageToken: next ? app.cursors.encode(scope, next) : "",
  };
}

const toPeerContract = (row: ContractRow): MessageInitShape<typeof PeerContractSchema> => ({
  contractId: row.contract_id,
  version: row.version,
  capability: row.capability,
  description: row.description,
  inputSchemaJson: Buffer.from(row.input_schema),
  outputSchemaJson: Buffer.from(row.output_schema),
  timeout: durationFromMs(row.timeout_ms),
  repeatable: row.repeatable !== 0,
  estimatedTokens: BigInt(row.estimated_tokens),
  maxTokens: BigInt(row.max_tokens),
});
