/** A table as a file: what its rows show, for a spreadsheet. */

/** Text of a spreadsheet begins no formula, whatever a user wrote. */
const inert = (text: string): string => (/^[=+\-@\t\r]/.test(text) ? `'${text}` : text);

const cell = (text: string): string => `"${inert(text.trim()).replaceAll('"', '""')}"`;

/** The rows that are loaded, as CSV (RFC 4180), under the name of the table. */
export function saveTable(table: HTMLTableElement | null, name: string): void {
  const lines = [...(table?.rows ?? [])].map((row) =>
    [...row.cells].map(({ textContent }) => cell(textContent)).join(","),
  );
  const url = URL.createObjectURL(new Blob([`${lines.join("\r\n")}\r\n`], { type: "text/csv" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = `${name.toLowerCase().replaceAll(" ", "-")}.csv`;
  link.click();
  URL.revokeObjectURL(url);
}
