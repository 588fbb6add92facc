import { TaskState } from "../../../gen/moltwire/bus/v1/task_pb.ts";
import { TraceEventKind } from "../../../gen/moltwire/bus/v1/trace_pb.ts";
import type { PeerReceipt, SignedMessage } from "../../../gen/moltwire/federation/v1/peer_envelope_pb.ts";
import type { App } from "../../app.ts";
import { spanOf } from "../../bus/conclude.ts";
import type { TaskSummaryRow } from "../../bus/task-store.ts";
import { recordSteps } from "../../bus/trace-store.ts";
import { nameIn } from "../../enum-name.ts";
import type { Counted } from "./receipt.ts";
import type { PeerRow } from "./store.ts";

/** Keeps a receipt in the trace of the work, with its signature, so that anybody who has the peer's key can check it later. */
export const keepReceipt = (
  app: App,
  peer: PeerRow,
  task: TaskSummaryRow,
  receipt: PeerReceipt,
  signed: SignedMessage,
  counted: Counted,
): Promise<void> =>
  app.db.tx((tx) =>
    recordSteps(tx, app, spanOf(task), [
      {
        kind: TraceEventKind.PEER_RECEIPT,
        timeMs: app.clock.now(),
        message: `${peer.name} gave a receipt for ${receipt.costMicros} micro-credits${beyond(receipt, counted)}`,
        details: {
          peer_id: peer.peer_id,
          origin: receipt.origin,
          key_id: signed.keyId,
          call_id: receipt.callId,
          task_id: receipt.taskId,
          state: nameIn(TaskState, receipt.state),
          input_tokens: Number(receipt.usage?.inputTokens ?? 0n),
          output_tokens: Number(receipt.usage?.outputTokens ?? 0n),
          cost_micros: Number(receipt.costMicros),
          counted_input_tokens: counted.inputTokens,
          counted_output_tokens: counted.outputTokens,
          counted_cost_micros: counted.costMicros,
          payload: Buffer.from(signed.payload).toString("base64"),
          signature: Buffer.from(signed.signature).toString("base64"),
        },
        targetAgentId: peer.agent_id,
      },
    ]),
  );

/** What is said of a receipt of which not all is counted. */
function beyond(
  { usage, costMicros }: PeerReceipt,
  { inputTokens, outputTokens, costMicros: counted }: Counted,
): string {
  const tokens = Number(usage?.inputTokens ?? 0n) + Number(usage?.outputTokens ?? 0n);
  if (Number(costMicros) === counted && tokens === inputTokens + outputTokens) return "";
  return ` and ${tokens} tokens: more than was left for it, so that ${counted} micro-credits and ${inputTokens + outputTokens} tokens are counted`;
}
