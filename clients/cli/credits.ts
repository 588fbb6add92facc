/** Credits, which the protocol counts in millionths. */
import type { JsonValue } from "@bufbuild/protobuf";
import type { Reading } from "./field.ts";
import { UsageError } from "./settings.ts";

const decimals = 6;

/** Reads credits such as 12 or 0.5 as micro-credits; what is too little or too much is the server's to say. */
export function credits(text: string, { label }: Reading): JsonValue {
  const [, whole = "", part = ""] = /^(\d{1,12})(?:\.(\d{1,6}))?$/.exec(text) ?? [];
  if (whole === "") throw new UsageError(`${label} ${text} is no number of credits`, "write it like 12 or 0.000001");
  return String(BigInt(`${whole}${part.padEnd(decimals, "0")}`));
}

/** Micro-credits for people: "-12.5". */
export function creditsText(micros: bigint): string {
  const digits = String(micros < 0n ? -micros : micros).padStart(decimals + 1, "0");
  const part = digits.slice(-decimals).replace(/0+$/, "");
  return `${micros < 0n ? "-" : ""}${digits.slice(0, -decimals)}${part && `.${part}`}`;
}
