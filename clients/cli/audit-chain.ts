/** Whether the lines of an audit export are an unbroken chain, and if not, where it breaks. It keeps no more than one row. */
import { hash as digest } from "node:crypto";
import { type AuditFile, auditFormat, beforeText, noHash, readFirstLine, textAt } from "./audit-form.ts";

/** A row that was noted elsewhere: its hash, and its number if that is known. */
export type Mark = { readonly number?: number; readonly hash: string };

/** What has to fit besides the chain itself. */
export type Expected = {
  /** After which row it has to begin. */
  readonly after?: Mark | undefined;
  /** A row that it has to hold. */
  readonly head?: Mark | undefined;
};

/** Where the chain breaks first. */
export type Broken = {
  readonly reason:
    | "AUDIT_CHANGED"
    | "AUDIT_REMOVED"
    | "AUDIT_REORDERED"
    | "AUDIT_INSERTED"
    | "AUDIT_CUT"
    | "AUDIT_OTHER";
  /** The row; 0 if it is the first line. */
  readonly number: number;
  /** The line, from 1. */
  readonly line: number;
  readonly message: string;
};

/** An unbroken chain. */
export type Unbroken = { readonly file: AuditFile };

export type Chain = {
  /** Takes the next line, without its end. Gives what breaks the chain, once that is known; then it must not be called any more. */
  line(bytes: Buffer): Broken | undefined;
  /** There are no more lines; `rest` is how many bytes come after the last one's end. */
  end(rest: number): Broken | Unbroken;
};

type Row = Readonly<Partial<Record<"format" | "number" | "org_id" | "previous", unknown>>>;

/** Checks an export line by line. */
export function checkChain({ after, head }: Expected = {}): Chain {
  let file: AuditFile | undefined;
  let line = 0;
  /** The last row of the unbroken part. */
  let number = 0;
  let hash = noHash;
  /** The row that stands where another should: that one may still come. */
  let gap: { readonly found: number; readonly line: number } | undefined;
  let hasHead = head === undefined;

  const broken = (reason: Broken["reason"], message: string, at = number + 1): Broken => ({
    ...{ reason, number: at, line, message },
  });

  function begin(bytes: Buffer): Broken | undefined {
    file = readFirstLine(bytes.toString());
    if (!file)
      return broken("AUDIT_CHANGED", `line 1 is not the first line of an export of the form ${auditFormat}`, 0);
    ({ afterNumber: number, afterHash: hash } = file);
    if (number === 0 && hash !== noHash)
      return broken("AUDIT_CHANGED", "line 1 was changed: there is no row before the first", 0);
    if (!after && number !== 0)
      return broken(
        "AUDIT_CUT",
        `the export goes on after ${name(number, hash)}, and nothing says that this is right: verify it with --after and what was noted, or found at the end of the export before`,
        0,
      );
    if (after && !fits(after, number, hash))
      return broken("AUDIT_OTHER", `the export goes on after ${name(number, hash)}, and not after ${noted(after)}`, 0);
    return look();
  }

  /** Compares the row that was reached with the one that was noted. */
  function look(): Broken | undefined {
    if (!head) return undefined;
    if (head.number === number && head.hash !== hash)
      return broken("AUDIT_CHANGED", `row ${number} has the hash ${hash}, and ${head.hash} was noted`, number);
    hasHead ||= fits(head, number, hash);
    return undefined;
  }

  function next(bytes: Buffer, file: AuditFile): Broken | undefined {
    const expected = number + 1;
    const read = readRow(bytes);
    if ("wrong" in read) {
      if (read.afterHole === undefined || read.afterHole <= expected)
        return broken("AUDIT_CHANGED", `row ${expected}, in line ${line}, was changed: ${read.wrong}`);
      gap = { found: read.afterHole, line };
      return undefined;
    }
    if (read.orgId !== file.orgId)
      return broken("AUDIT_INSERTED", `the row in line ${line} is of another organisation than line 1 says`);
    const inserted = misplaced(read.number, file);
    if (inserted)
      return broken("AUDIT_INSERTED", `row ${read.number} stands in line ${line}, ${inserted}`, read.number);
    if (read.number > expected) {
      gap = { found: read.number, line };
      return undefined;
    }
    if (read.previous !== hash) {
      const other = `row ${expected}, in line ${line}, follows another row ${number} than is there`;
      return broken("AUDIT_CHANGED", `${other}: row ${number} was changed, and its hash with it`, number);
    }
    number = expected;
    hash = read.hash;
    return look();
  }

  function misplaced(found: number, { headNumber }: AuditFile): string | undefined {
    if (found <= number) return `after row ${number}: it was inserted there`;
    return found > headNumber ? `and line 1 says that row ${headNumber} is the last` : undefined;
  }

  /** Looks for the row whose place another has. */
  function seek(
    bytes: Buffer,
    { found, line: at }: { readonly found: number; readonly line: number },
  ): Broken | undefined {
    const expected = number + 1;
    if (parse(bytes.subarray(textAt, -1))?.number !== expected) return undefined;
    return broken(
      "AUDIT_REORDERED",
      `row ${found}, in line ${at}, stands before row ${expected}, which is in line ${line}`,
    );
  }

  return {
    line(bytes) {
      line++;
      if (!file) return begin(bytes);
      return gap ? seek(bytes, gap) : next(bytes, file);
    },
    end(rest) {
      if (!file) return broken("AUDIT_CUT", "the file has no whole line", 0);
      const expected = number + 1;
      if (gap) {
        const rows = gap.found === expected + 1 ? `row ${expected} is` : `rows ${expected} to ${gap.found - 1} are`;
        return broken(
          "AUDIT_REMOVED",
          `${rows} missing: row ${gap.found}, in line ${gap.line}, follows ${number === 0 ? "nothing" : `row ${number}`}`,
        );
      }
      if (rest > 0) return broken("AUDIT_CUT", `the file ends in the middle of row ${expected}`);
      if (number < file.headNumber)
        return broken(
          "AUDIT_CUT",
          `the file ends with row ${number}, and line 1 says that row ${file.headNumber} is the last`,
        );
      if (hash !== file.headHash || number !== file.headNumber)
        return broken(
          "AUDIT_CHANGED",
          `line 1 says that the last is ${name(file.headNumber, file.headHash)}, and it is ${name(number, hash)}`,
          0,
        );
      if (hasHead) return { file };
      return head!.number !== undefined && head!.number > number
        ? broken(
            "AUDIT_CUT",
            `the file ends with row ${number}, and row ${head!.number} was noted: its end is cut, or it is older`,
          )
        : broken("AUDIT_CHANGED", `no row is ${noted(head!)}, which was noted: the chain was cut, or written anew`);
    },
  };
}

const closingBrace = 0x7d;

const fits = (mark: Mark, number: number, hash: string): boolean =>
  mark.hash === hash && (mark.number ?? number) === number;

/** A row as people note it: `12:6f1e…`. */
export const name = (number: number, hash: string): string => `${number}:${hash}`;

const noted = ({ number, hash }: Mark): string => (number === undefined ? hash : name(number, hash));

/** A row that has the hash that it says; or what is wrong with it, and its number where rows before it were gone already when it was exported. */
type Read =
  | { readonly number: number; readonly hash: string; readonly previous: unknown; readonly orgId: unknown }
  | { readonly wrong: string; readonly afterHole?: number };

function readRow(bytes: Buffer): Read {
  const end = bytes.length - 1;
  const text = bytes.subarray(textAt, end);
  const hash = digest("sha256", text);
  const row = parse(text);
  const { format, number, previous, org_id: orgId } = row ?? {};
  if (bytes.toString("latin1", 0, textAt) !== beforeText(hash) || bytes[end] !== closingBrace) {
    const isAfterHole = previous === "" && typeof number === "number";
    return { wrong: difference(bytes, hash), ...(isAfterHole && { afterHole: number }) };
  }
  return format === auditFormat && typeof number === "number" && Number.isSafeInteger(number)
    ? { number, hash, previous, orgId }
    : { wrong: `it is no row of the form ${auditFormat}` };
}

function difference(bytes: Buffer, computed: string): string {
  const [, said] = /^\{"hash":"([0-9a-f]{64})","row":/.exec(bytes.toString("latin1", 0, textAt)) ?? [];
  return said === undefined || said === computed
    ? "the line is not as an export has it"
    : `its hash is ${said}, and its content has the hash ${computed}`;
}

function parse(text: Buffer): Row | undefined {
  try {
    const row: unknown = JSON.parse(text.toString());
    return typeof row === "object" && row !== null ? (row as Row) : undefined;
  } catch {
    return undefined;
  }
}
