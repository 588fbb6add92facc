/** JSON from the command line, a file or standard input. */
import { readFileSync, statSync } from "node:fs";
import { fromJson, type JsonValue, toJson } from "@bufbuild/protobuf";
import { type Value, ValueSchema } from "@bufbuild/protobuf/wkt";
import { UsageError } from "./settings.ts";

/** What the server takes at most. */
const maxInputBytes = 1 << 20;

/**
 * Reads INPUT as `readJson` does. Not given: null.
 *
 * @throws UsageError if it cannot be read, is over 1 MiB, or is no JSON.
 */
export async function readInput(argument: string | undefined, stdin: AsyncIterable<Buffer>): Promise<Value> {
  const label = "INPUT";
  return toValue(argument === undefined ? null : await readJson(argument, label, stdin), label);
}

/**
 * Reads JSON: the text itself, `@file`, or `-` for what `stdin` holds. Standard input is only read when it is asked for, so that a command in
 * a `while read` loop does not swallow the loop's own input. `label` is what the text was given by, for people.
 *
 * @throws UsageError if it cannot be read, is over 1 MiB, or is no JSON.
 */
export async function readJson(text: string, label: string, stdin: AsyncIterable<Buffer>): Promise<JsonValue> {
  return text === "-" || text.startsWith("@") ? await readJsonFile(text, stdin) : parse(text, label);
}

/**
 * Reads JSON from a file, with or without an @ before its path, or from `stdin` for `-`.
 *
 * @throws UsageError as `readJson` does.
 */
export async function readJsonFile(path: string, stdin: AsyncIterable<Buffer>): Promise<JsonValue> {
  const from = path === "-" ? "standard input" : path.replace(/^@/, "");
  return parse((await readBytes(path, stdin)).toString("utf8"), from);
}

/**
 * Reads what a file holds, with or without an @ before its path, or `stdin` for `-`.
 *
 * @throws UsageError if it cannot be read, or is over 1 MiB.
 */
export async function readBytes(path: string, stdin: AsyncIterable<Buffer>): Promise<Buffer> {
  return path === "-" ? await readAll(stdin) : readInputFile(path.replace(/^@/, ""));
}

function parse(text: string, from: string): JsonValue {
  if (Buffer.byteLength(text) > maxInputBytes) throw tooLarge(from);
  try {
    return JSON.parse(text);
  } catch (error) {
    const fix = `put JSON in single quotes, such as '{"question":"why?"}', or give @file or - for standard input`;
    throw new UsageError(`${from} is not JSON: ${(error as Error).message.replace(/\s+/g, " ")}`, fix);
  }
}

function toValue(json: JsonValue, from: string): Value {
  try {
    const value = fromJson(ValueSchema, json);
    // Reading takes 1e999 for infinity; only writing refuses it.
    toJson(ValueSchema, value);
    return value;
  } catch (error) {
    throw new UsageError(
      `${from} cannot be sent: ${(error as Error).message}`,
      "keep numbers finite and the nesting below 64 levels",
    );
  }
}

function readInputFile(path: string): Buffer {
  try {
    if (statSync(path).size > maxInputBytes) throw tooLarge(path);
    return readFileSync(path);
  } catch (error) {
    if (error instanceof UsageError) throw error;
    throw new UsageError(`the input cannot be read: ${(error as Error).message}`, "check the path");
  }
}

async function readAll(stream: AsyncIterable<Buffer>): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of stream) {
    size += chunk.length;
    if (size > maxInputBytes) throw tooLarge("standard input");
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

const tooLarge = (from: string): UsageError =>
  new UsageError(`${from} is over 1 MiB`, "send less: pass a reference instead of the content");
