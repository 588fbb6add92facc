import { dialHttp2 } from "../dial.ts";
import { holding } from "./held.ts";

/** HTTP/2 sessions in which nothing is ever asked. */
export const idleSessions = holding("idle HTTP/2 sessions", dialHttp2);
