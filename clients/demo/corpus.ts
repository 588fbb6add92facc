/** What the demo's researcher reads: the project's own protos and documents, cut into passages. */
import { globSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";

/** A piece of a file that can be quoted. Line n of `text` (from 0) is what is said at line `line + n` of the file. */
export type Passage = {
  /** Path of the file, relative to the project. */
  readonly source: string;
  /** Line of the file, from 1. */
  readonly line: number;
  readonly text: string;
  /** What the passage is about: the heading above it, or what it comments. */
  readonly label: string;
};

const maxFiles = 500;
const maxFileBytes = 1 << 20;
const minPassageChars = 24;
const patterns = ["proto/**/*.proto", "*.md", "docs/**/*.md", "clients/**/*.md"];

/**
 * Reads every proto and Markdown document below `root`, in order of path. Files over 1 MiB are left out.
 *
 * @throws Error if there are none, or more than 500.
 */
export function readCorpus(root: string): { readonly files: number; readonly passages: readonly Passage[] } {
  const files = globSync(patterns, { cwd: root, exclude: ["**/node_modules/**"] }).sort();
  if (files.length === 0) throw new Error(`there is nothing to search in ${root}: no .proto and no .md file`);
  if (files.length > maxFiles) throw new Error(`${root} has ${files.length} documents, more than ${maxFiles}`);
  const passages = files.flatMap((source) => {
    const path = join(root, source);
    if (statSync(path).size > maxFileBytes) return [];
    const lines = readFileSync(path, "utf8").split(/\r?\n/);
    const cut = source.endsWith(".proto") ? cutProto(lines) : cutMarkdown(lines);
    return cut.filter(({ text }) => text.length >= minPassageChars).map((piece) => ({ source, ...piece }));
  });
  return { files: files.length, passages };
}

type Piece = Omit<Passage, "source">;

/** How the comments begin that only repeat a name. */
const saysNothing = /^\w+ is (the request|the response|one message) of /;

/** One piece for each comment; its label is the declaration under it and the blocks around it. */
export function cutProto(lines: readonly string[]): Piece[] {
  const pieces: Piece[] = [];
  const around: string[] = [];
  let comment: string[] = [];
  lines.forEach((raw, index) => {
    const line = raw.trim();
    if (line.startsWith("//")) {
      comment.push(line.replace(/^\/\/ ?/, ""));
      return;
    }
    if (comment.length > 0 && !saysNothing.test(comment[0]!)) {
      const declared = /([\w.]+)\s*(?:[=;{[(].*)?$/.exec(line)?.[1] ?? "";
      const label = [...around, declared].filter((part) => part !== "").join(" › ");
      pieces.push({ line: index - comment.length + 1, text: comment.join("\n"), label });
    }
    comment = [];
    const opened = /^(?:message|enum|service|oneof|rpc)\s+(\w+).*\{$/.exec(line)?.[1];
    if (opened) around.push(opened);
    else if (line.endsWith("{")) around.push("");
    else if (/^\}/.test(line)) around.pop();
  });
  return pieces;
}

/** One piece for each paragraph, list item and table row outside code blocks; its label is the heading above it. */
export function cutMarkdown(lines: readonly string[]): Piece[] {
  const pieces: Piece[] = [];
  let heading = "";
  let fence = "";
  let open: { line: number; texts: string[] } | undefined;
  const close = () => {
    if (open) pieces.push({ line: open.line, text: open.texts.join("\n"), label: heading });
    open = undefined;
  };
  lines.forEach((line, index) => {
    const mark = /^\s*(```|~~~)/.exec(line)?.[1];
    if (fence !== "" || mark) {
      close();
      if (mark && (fence === "" || fence === mark)) fence = fence === "" ? mark : "";
      return;
    }
    const title = /^#{1,6}\s+(.*)$/.exec(line)?.[1];
    const begins = /^\s*([-*+]|\d+[.)])\s|^\s*\|/.test(line);
    if (title !== undefined || line.trim() === "" || begins) close();
    if (title !== undefined) heading = title;
    else if (/[\p{L}\p{N}]/u.test(line)) (open ??= { line: index + 1, texts: [] }).texts.push(plain(line));
  });
  close();
  return pieces;
}

/** A line of Markdown as it reads. */
const plain = (line: string): string =>
  line
    .replace(/^\s*([-*+]|\d+[.)]|>)\s+/, "")
    .replace(/!?\[([^\]]*)\]\([^)]*\)/g, "$1")
    .replace(/\*\*|__/g, "")
    .replace(/^\s*\||\|\s*$/g, "")
    .replaceAll("|", " – ")
    .trim();
