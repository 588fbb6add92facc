/** The same research call, asked for on another server, in another process: one trace id on both, and a signed receipt of what it cost. */

import { createPublicKey, verify } from "node:crypto";
import { fromBinary } from "@bufbuild/protobuf";
import { CostService } from "../../../gen/moltwire/bus/v1/cost_service_pb.ts";
import { TraceEventKind } from "../../../gen/moltwire/bus/v1/trace_pb.ts";
import { GatewayService } from "../../../gen/moltwire/federation/v1/gateway_service_pb.ts";
import { type PeerReceipt, PeerReceiptSchema } from "../../../gen/moltwire/federation/v1/peer_envelope_pb.ts";
import { PeerService } from "../../../gen/moltwire/federation/v1/peer_service_pb.ts";
import { type Clients, connectClients } from "../../cli/connect.ts";
import { readTrace } from "../../cli/trace.ts";
import { checkQuotes } from "../answer.ts";
import { callTimeoutMs, outputOf, wish } from "../ask.ts";
import { federate } from "../federate.ts";
import type { Answered } from "../research.ts";
import { addCaller, addOrganization } from "../setup.ts";
import { claim, same } from "./claim.ts";
import type { Outcome, World } from "./scenario.ts";

const contractId = "research/answer";
const rate = { inputPer1000TokensMicros: 100_000n, outputPer1000TokensMicros: 300_000n };
const micros = 1_000_000;

/** Starts a second server, makes the two peers, and has the second ask. */
export async function peers(world: World): Promise<Outcome> {
  const { admin, operator, made, question, root, url, startPeer } = world;
  const { url: secondUrl, peerUrl, operatorKey, pid } = await startPeer();
  const second = connectClients({ url: secondUrl, key: operatorKey });
  const { orgId: askingOrgId, orgKey } = await addOrganization(second, "branch");
  const branch = connectClients({ url: secondUrl, key: orgKey });
  const { key } = await addCaller(branch, "asker", "Asks another server for work.");
  const asker = connectClients({ url: secondUrl, key });
  await admin(CostService).setRates({ rates: [{ agentId: made.agentIds.researcher, ...rate }] });
  const opening = { askingOrgId, doingOrgId: made.orgId, contractId };
  const { targetOrgId } = await federate({ url: peerUrl, operator: second }, { url, operator }, opening);

  const request = { targetOrgId, ...wish(contractId, { question }) };
  const task = (await asker(GatewayService).submitTask(request, { timeoutMs: callTimeoutMs })).task!;
  const { quotes } = outputOf<Answered>(task);
  checkQuotes(root, quotes);
  const { taskId, traceId, costMicros } = task;
  const asked = await readTrace(second, targetOrgId, traceId);
  const done = await readTrace(admin, "", traceId);
  const completed = done.events.some(({ kind }) => kind === TraceEventKind.COMPLETED);
  claim(completed, "the trace on the first server does not say that the task completed");
  const kept = asked.events.find(({ kind }) => kind === TraceEventKind.PEER_RECEIPT)?.details;
  claim(kept !== undefined, "the trace on the second server has no receipt of the first");
  const receipt = await readReceipt(operator, String(kept.payload), String(kept.signature));
  same("of what the receipt is", [receipt.callId, receipt.traceId], [taskId, traceId]);
  const { totals } = await admin(CostService).getTraceCosts({ traceId });
  const { inputTokens, outputTokens } = totals!;
  same(
    "the tokens of the receipt",
    [receipt.usage?.inputTokens, receipt.usage?.outputTokens],
    [inputTokens, outputTokens],
  );
  const cost =
    (inputTokens * rate.inputPer1000TokensMicros + outputTokens * rate.outputPer1000TokensMicros + 999n) / 1_000n;
  claim(cost > 0n, "the task cost nothing");
  same(
    "the cost by the receipt, by the task on the second server and by the first server's costs",
    [receipt.costMicros, costMicros, totals!.costMicros],
    [cost, cost, cost],
  );
  return {
    proof: `a second server, process ${pid} at ${secondUrl}, has an agent of the first one answer the same question: ${quotes.length} quotes; one trace id on both, ${asked.events.length} steps there and ${done.events.length} here; the receipt, signed by the first, says ${(Number(cost) / micros).toFixed(3)} credits, as both book`,
    traceId,
  };
}

/** A receipt as the second server keeps it, in base64, if the first has signed it; see SignedMessage. */
async function readReceipt(first: Clients, payload: string, signature: string): Promise<PeerReceipt> {
  const bytes = Buffer.from(payload, "base64");
  const signed = Buffer.concat([Buffer.from(`${PeerReceiptSchema.typeName}\0`), bytes]);
  const { keys } = (await first(PeerService).getIdentity({})).identity!;
  const isSigned = keys.some(({ publicKey }) => {
    const jwk = { kty: "OKP", crv: "Ed25519", x: Buffer.from(publicKey).toString("base64url") };
    return verify(null, signed, createPublicKey({ key: jwk, format: "jwk" }), Buffer.from(signature, "base64"));
  });
  claim(isSigned, "the receipt is not signed by the first server");
  return fromBinary(PeerReceiptSchema, bytes);
}
