/** What traces tell of a price. */
import { type JsonObject, toJson } from "@bufbuild/protobuf";
import { ReceiptSchema, ReceiptState } from "../../../gen/moltwire/bus/v1/receipt_pb.ts";
import { TraceEventKind } from "../../../gen/moltwire/bus/v1/trace_pb.ts";
import type { Step } from "../../bus/trace-store.ts";
import { creditsText } from "../ledger/fault.ts";
import { type CallRow, receiptOf } from "./call-store.ts";

/** The step of a request whose price was set aside, paid or released. */
export const chargedStep = (call: CallRow, timeMs: number): Step => ({
  kind: TraceEventKind.CHARGED,
  timeMs,
  message: messageOf(call),
  details: toJson(ReceiptSchema, receiptOf(call), { useProtoFieldName: true }) as JsonObject,
});

function messageOf({ state, reserved_micros, amount_micros, fee_micros }: CallRow): string {
  const text = (micros: number) => creditsText(BigInt(micros));
  if (state === ReceiptState.VOIDED) return "costs nothing";
  if (state === ReceiptState.RESERVED) return `${text(reserved_micros)} credits are set aside`;
  return `cost ${text(amount_micros)} credits, of which ${text(fee_micros)} go to the platform`;
}
