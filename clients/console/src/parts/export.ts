/** A table as a file: what its rows show for a spreadsheet, or all they are. */
import { type DescMessage, type MessageShape, toJson } from "@bufbuild/protobuf";

/** Text of a spreadsheet begins no formula, whatever a user wrote. */
const inert = (text: string): string => (/^[=+\-@\t\r]/.test(text) ? `'${text}` : text);

const cell = (text: string): string => `"${inert(text.trim()).replaceAll('"', '""')}"`;

/** The rows that are loaded, as CSV (RFC 4180), under the name of the table. */
export function saveTable(table: HTMLTableElement | null, name: string): void {
  const lines = [...(table?.rows ?? [])].map((row) =>
    [...row.cells].map(({ textContent }) => cell(textContent)).join(","),
  );
  saveFile([`${lines.join("\r\n")}\r\n`], `${fileName(name)}.csv`, "text/csv");
}

/** Messages as a file: all they say, as the protocol writes them. */
export function saveJson<Desc extends DescMessage>(
  schema: Desc,
  rows: readonly MessageShape<Desc>[],
  name: string,
): void {
  const text = JSON.stringify(
    rows.map((row) => toJson(schema, row)),
    null,
    2,
  );
  saveFile([`${text}\n`], `${fileName(name)}.json`, "application/json");
}

const fileName = (name: string): string => name.toLowerCase().replaceAll(" ", "-");

/** Hands a file to the browser. */
export function saveFile(parts: readonly string[], name: string, type: string): void {
  const url = URL.createObjectURL(new Blob([...parts], { type }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  URL.revokeObjectURL(url);
}
