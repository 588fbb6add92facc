/** Statements as CSV (RFC 4180). */
import { create, type DescField } from "@bufbuild/protobuf";
import { timestampDate } from "@bufbuild/protobuf/wkt";
import { type Transaction, TransactionSchema } from "../../../gen/moltwire/exchange/v1/ledger_pb.ts";
import type { Line } from "./line-store.ts";
import { toTransaction } from "./message.ts";

/** The columns are the fields of Transaction, in their order. */
const { fields } = TransactionSchema;

/** The line of titles. */
export const csvHead = `${fields.map(({ name }) => name).join(",")}\r\n`;

/** A line of a statement. */
export function csvLine(line: Line): string {
  const message = create(TransactionSchema, toTransaction(line));
  return `${fields.map((field) => quoted(textOf(message, field))).join(",")}\r\n`;
}

/** An enum by its last words, a time as RFC 3339 has it, all else as it is. */
function textOf(message: Transaction, field: DescField): string {
  if (field.localName === "time") return timestampDate(message.time!).toISOString();
  const value = message[field.localName as keyof Transaction];
  return field.fieldKind === "enum" ? field.enum.value[value as number]!.localName : String(value);
}

/** Ids and references hold nothing that has to be quoted, and begin with nothing that a spreadsheet takes for a formula; their rules may change. */
const quoted = (text: string): string => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
