/** The same research call, asked for on another server, in another process: one trace id on both, and a signed receipt of what it cost. */

import { CostService } from "../../../gen/moltwire/bus/v1/cost_service_pb.ts";
import { TraceEventKind } from "../../../gen/moltwire/bus/v1/trace_pb.ts";
import { GatewayService } from "../../../gen/moltwire/federation/v1/gateway_service_pb.ts";
import { connectClients } from "../../cli/connect.ts";
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
  const { traceId, costMicros } = task;
  const here = await readTrace(second, targetOrgId, traceId);
  const there = await readTrace(admin, "", traceId);
  const done = there.events.find(({ kind }) => kind === TraceEventKind.COMPLETED);
  claim(done !== undefined, "the trace on the first server does not say that the task completed");
  const receipt = here.events.find(({ kind }) => kind === TraceEventKind.PEER_RECEIPT)?.details;
  claim(receipt !== undefined, "the trace on the second server has no receipt of the first");
  const { totals } = await admin(CostService).getTraceCosts({ traceId });
  const { inputTokens, outputTokens } = totals!;
  const cost =
    (inputTokens * rate.inputPer1000TokensMicros + outputTokens * rate.outputPer1000TokensMicros + 999n) / 1_000n;
  claim(cost > 0n, "the task cost nothing");
  same(
    "the cost by the task, by the receipt and by the first server's costs",
    [costMicros, BigInt(Number(receipt.cost_micros)), totals!.costMicros],
    [cost, cost, cost],
  );
  const tokens = [receipt.input_tokens, receipt.output_tokens].map(Number);
  same("the tokens by the receipt", tokens, [inputTokens, outputTokens].map(Number));
  return {
    proof: `a second server, process ${pid} at ${secondUrl}, has an agent of the first one answer the same question: ${quotes.length} quotes; one trace id on both, ${here.events.length} steps there and ${there.events.length} here; its signed receipt says ${(Number(cost) / micros).toFixed(3)} credits, as both servers book`,
    traceId,
  };
}
