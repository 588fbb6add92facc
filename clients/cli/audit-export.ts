/** `moltwire audit export`: an organisation's chained audit rows, into a file. */
import type { FileHandle } from "node:fs/promises";
import { AdminService, type ExportAuditEventsResponse } from "../../gen/moltwire/ops/v1/admin_service_pb.ts";
import { type Broken, checkChain, type Mark, name, type Unbroken } from "./audit-chain.ts";
import { type AuditFile, firstLine, rowLine, rowText } from "./audit-form.ts";
import { tellBroken } from "./audit-verify.ts";
import { connectClients } from "./connect.ts";
import { exitCodes } from "./exit-codes.ts";
import { newFile } from "./new-file.ts";
import { plain, print, printJson } from "./output.ts";
import { type ConnectionOptions, readSettings, type Settings } from "./settings.ts";
import { renderFacts } from "./table.ts";

export type ExportOptions = ConnectionOptions & { readonly after?: Required<Mark>; readonly force?: boolean };

/** Writes the file and checks what it writes. Returns the exit code; a chain that is broken is kept, as it is. */
export async function exportAudit(path: string, options: ExportOptions): Promise<number> {
  const settings = readSettings(options, process.env);
  const found = await newFile(path, options.force, (file) => take(settings, options, file));
  if ("reason" in found) return tellBroken(found, options.json);
  if (options.json) printJson(found.file);
  else for (const line of describe(path, found.file)) print(line);
  return exitCodes.ok;
}

async function take(settings: Settings, options: ExportOptions, to: FileHandle): Promise<Broken | Unbroken> {
  const request = { orgId: options.org ?? "", afterNumber: BigInt(options.after?.number ?? 0) };
  const chain = checkChain({ after: options.after });
  const linesOf = exportLines();
  let broken: Broken | undefined;
  for await (const message of connectClients(settings)(AdminService).exportAuditEvents(request)) {
    const lines = linesOf(message);
    for (const line of lines) broken ??= chain.line(Buffer.from(line));
    await to.writeFile(lines.map((line) => `${line}\n`).join(""));
  }
  return broken ?? chain.end(0);
}

/** Makes lines of the messages of an export, in their order. What came before a row that is gone from the database nobody can say: there `previous` is empty. */
export function exportLines(): (message: ExportAuditEventsResponse) => string[] {
  let last = { number: 0n, hash: "" };
  return (message) => {
    const lines: string[] = [];
    if (message.export) {
      const { head, afterNumber, afterHash } = message.export;
      const headIs = { headNumber: Number(head!.number), headHash: head!.hash };
      lines.push(firstLine({ orgId: head!.orgId, afterNumber: Number(afterNumber), afterHash, ...headIs }));
      last = { number: afterNumber, hash: afterHash };
    }
    for (const event of message.auditEvents) {
      lines.push(rowLine(event.hash, rowText(event, event.number === last.number + 1n ? last.hash : "")));
      last = event;
    }
    return lines;
  };
}

function describe(path: string, { orgId, afterNumber, headNumber, headHash }: AuditFile): string[] {
  const rows = headNumber - afterNumber;
  return renderFacts(plain(path), [
    ["organisation", orgId],
    ["rows", rows === 0 ? "none" : `${rows}: ${afterNumber + 1} to ${headNumber}`],
    ["head", name(headNumber, headHash)],
  ]);
}
