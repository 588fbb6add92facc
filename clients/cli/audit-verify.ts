/** `moltwire audit verify`: checks an export, without a server. */
import { createReadStream } from "node:fs";
import { InvalidArgumentError } from "commander";
import { type Broken, type Chain, checkChain, type Mark, name, type Unbroken } from "./audit-chain.ts";
import { exitCodes } from "./exit-codes.ts";
import { note, paint, plain, print, printJson } from "./output.ts";
import { report } from "./problem.ts";
import { type ConnectionOptions, UsageError } from "./settings.ts";
import { renderFacts } from "./table.ts";

export type VerifyOptions = ConnectionOptions & { readonly head?: Mark; readonly after?: Mark };

const chunkBytes = 1 << 20;
/** No row is as long. */
const maxLineBytes = 1 << 20;
const lineEnd = 0x0a;

/** Checks the file and says what is wrong with it, or that nothing is. Returns the exit code. */
export async function verify(path: string, options: VerifyOptions): Promise<number> {
  const found = await checkFile(path, checkChain(options)).catch((error: NodeJS.ErrnoException) => {
    if (error.code === undefined) throw error;
    throw new UsageError(
      `${path} cannot be read: ${error.message}`,
      "give a file that `moltwire audit export` has made",
    );
  });
  if ("reason" in found) return tellBroken(found, options.json);
  if (options.json) {
    printJson(found.file);
    return exitCodes.ok;
  }
  for (const line of describe(found)) print(line);
  if (!options.head)
    note("that it was not written anew, only a head tells that was noted elsewhere: --head NUMBER:HASH");
  return exitCodes.ok;
}

/** Says where a chain breaks. Returns the exit code. */
export const tellBroken = ({ reason, message }: Broken, json: boolean | undefined): number =>
  report(
    {
      exitCode: exitCodes.failed,
      reason,
      message,
      fix: "keep the file as it is, and find out who could write to it or to the database",
    },
    json,
  );

function describe({ file }: Unbroken): string[] {
  const { orgId, afterNumber, headNumber, headHash } = file;
  const rows = headNumber - afterNumber;
  const range = rows === 0 ? "no rows" : `${rows} ${rows === 1 ? "row" : "rows"}: ${afterNumber + 1} to ${headNumber}`;
  return renderFacts(`${paint("green", "✔ unbroken")}  ${range}`, [
    ["organisation", plain(orgId)],
    ["head", name(headNumber, headHash)],
  ]);
}

/** Reads the file once, a piece at a time. */
export async function checkFile(path: string, chain: Chain): Promise<Broken | Unbroken> {
  let rest: Buffer = Buffer.alloc(0);
  let lines = 0;
  for await (const chunk of createReadStream(path, { highWaterMark: chunkBytes }) as AsyncIterable<Buffer>) {
    const bytes = rest.length > 0 ? Buffer.concat([rest, chunk]) : chunk;
    let from = 0;
    for (let end = bytes.indexOf(lineEnd); end >= 0; end = bytes.indexOf(lineEnd, from)) {
      const broken = chain.line(bytes.subarray(from, end));
      if (broken) return broken;
      lines++;
      from = end + 1;
    }
    rest = bytes.subarray(from);
    if (rest.length > maxLineBytes) {
      const line = lines + 1;
      const message = `line ${line} is longer than any row: it was changed`;
      return { reason: "AUDIT_CHANGED", number: lines, line, message };
    }
  }
  return chain.end(rest.length);
}

/** Reads `12:6f1e…`. */
export function numberedMark(text: string): Required<Mark> {
  const { number, hash } = mark(text);
  if (number === undefined) throw new InvalidArgumentError("It must be NUMBER:HASH.");
  return { number, hash };
}

/** Reads `12:6f1e…`, or the hash alone. */
export function mark(text: string): Mark {
  const [, number, hash] = /^(?:(\d{1,15}):)?([0-9a-f]{64})$/.exec(text) ?? [];
  if (hash === undefined)
    throw new InvalidArgumentError("It must be NUMBER:HASH, as `moltwire audit head` prints it, or the hash alone.");
  return { hash, ...(number !== undefined && { number: Number(number) }) };
}
