/** What Redis speaks, as far as the bench needs it: a command as bytes, and when its reply is whole (https://redis.io/docs/latest/develop/reference/protocol-spec). */
import type { Template } from "./load.ts";
import { counterMark } from "./requests.ts";

/** A command as a request. */
export function command(...words: readonly string[]): Template {
  const bytes = Buffer.from(
    `*${words.length}\r\n${words.map((word) => `$${Buffer.byteLength(word)}\r\n${word}\r\n`).join("")}`,
  );
  const counterAt = bytes.indexOf(counterMark);
  return { bytes, counterAt: counterAt < 0 ? undefined : counterAt };
}

const bulk = 0x24;
const minus = 0x2d;

/** Whether a status, an integer, an error or a bulk string is there to its end. */
export function isWholeReply(bytes: Buffer): boolean {
  const line = bytes.indexOf("\r\n");
  if (line < 0) return false;
  if (bytes[0] !== bulk) return true;
  const length = Number(bytes.toString("latin1", 1, line));
  return length < 0 || bytes.length >= line + 2 + length + 2;
}

/** As HTTP would say it: an error, or nothing where something was asked for, is no success. */
export const statusOfReply = (bytes: Buffer): number =>
  bytes[0] === minus || (bytes[0] === bulk && bytes[1] === minus) ? 500 : 200;
