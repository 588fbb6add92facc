// What scripts of other origins may do: call methods and read the answers, if the operator named their origin.

import { cors } from "@connectrpc/connect";
import type { FastifyInstance } from "fastify";
import { isRpcPath } from "./refuse.ts";

const maxOrigins = 100;
const preflightSeconds = 7_200;

const allowedHeaders = [...cors.allowedHeaders, "Authorization", "X-Api-Key", "Idempotency-Key", "Traceparent"];
const exposedHeaders = [
  ...cors.exposedHeaders,
  "X-Trace-Id",
  "Ratelimit-Limit",
  "Ratelimit-Remaining",
  "Grant-Ratelimit-Limit",
  "Grant-Ratelimit-Remaining",
  "Retry-After",
  "Idempotency-Replayed",
];

/**
 * Reads the operator's list: exact origins with commas between, at most 100. Throws an Error naming the first bad one. `*` is none: what one
 * does not name cannot be trusted with a session in a browser.
 */
export function parseOrigins(list: string): readonly string[] {
  const origins = list
    .split(",")
    .map((origin) => origin.trim())
    .filter((origin) => origin !== "");
  if (origins.length > maxOrigins) throw new Error(`has ${origins.length} origins, more than ${maxOrigins}`);
  for (const origin of origins) {
    if (origin.includes("*")) throw new Error(`"${origin}" would let unnamed sites in; name each origin in full`);
    const url = URL.parse(origin);
    if (!url || !/^https?:$/.test(url.protocol))
      throw new Error(`"${origin}" is not an origin; one looks like https://app.example.com`);
    if (url.origin !== origin) throw new Error(`"${origin}" never equals an origin; write ${url.origin}`);
  }
  return origins;
}

/**
 * Lets scripts of these origins call the methods (paths shaped like one), without cookies. Others get no header, so browsers keep the
 * answers from them. Add it before what refuses requests: a script could not read why.
 */
export function allowOrigins(fastify: FastifyInstance, origins: readonly string[]): void {
  if (origins.length === 0) return;
  const allowed: ReadonlySet<string> = new Set(origins);
  fastify.addHook("onRequest", async (request, reply) => {
    if (!isRpcPath(request.raw.url)) return;
    // On every answer, or a cache would give one origin what was meant for another.
    reply.header("vary", "origin");
    const { origin } = request.headers;
    if (origin === undefined || !allowed.has(origin)) return;
    reply.header("access-control-allow-origin", origin);
    const isPreflight = request.method === "OPTIONS" && request.headers["access-control-request-method"] !== undefined;
    if (!isPreflight) {
      reply.header("access-control-expose-headers", exposedHeaders.join(", "));
      return;
    }
    return reply
      .code(204)
      .header("access-control-allow-methods", cors.allowedMethods.join(", "))
      .header("access-control-allow-headers", allowedHeaders.join(", "))
      .header("access-control-max-age", String(preflightSeconds))
      .send();
  });
}
