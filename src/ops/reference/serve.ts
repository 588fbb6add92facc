/** `/openapi.json` and `/docs`, for everybody: what the methods are, from the protos of this version. */
import { gzipSync } from "node:zlib";
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import { type Document, readDocument } from "./document.ts";
import { page, pageHeaders } from "./markup.ts";
import { errorsPage, overviewPage, servicePage } from "./pages.ts";

type Sent = { readonly plain: Buffer; readonly gzip: Buffer };

/** Serves the reference. It is read and made when it is first asked for, and kept: a page for each service and no more. */
export function serveReference(http: FastifyInstance): void {
  let read: Document | undefined;
  const document = () => (read ??= readDocument());
  const kept = new Map<string, Sent>();
  const sent = (path: string, make: () => string | Buffer | undefined): Sent | undefined => {
    const made = kept.has(path) ? undefined : make();
    if (made !== undefined) kept.set(path, { plain: Buffer.from(made), gzip: gzipSync(made) });
    return kept.get(path);
  };

  const answer = (request: FastifyRequest, reply: FastifyReply, { plain, gzip }: Sent): FastifyReply => {
    const { etag } = document();
    reply.headers({ vary: "accept-encoding", "cache-control": "no-cache", etag });
    if (request.headers["if-none-match"] === etag) return reply.code(304).send();
    if (!/\bgzip\b(?!\s*;\s*q=0(\.0*)?\s*(,|$))/.test(request.headers["accept-encoding"] ?? ""))
      return reply.send(plain);
    return reply.header("content-encoding", "gzip").send(gzip);
  };
  const html = (request: FastifyRequest, reply: FastifyReply, found: Sent | undefined): FastifyReply => {
    reply.headers(pageHeaders).type("text/html; charset=utf-8");
    if (found) return answer(request, reply, found);
    return reply.code(404).send(page("Not found", '<p>There is no such service. <a href="/docs">All services</a></p>'));
  };

  http.get("/openapi.json", (request, reply) => {
    reply.type("application/json; charset=utf-8").header("x-content-type-options", "nosniff");
    return answer(request, reply, sent("/openapi.json", () => document().text)!);
  });
  http.get("/docs", (request, reply) =>
    html(
      request,
      reply,
      sent("/docs", () => overviewPage(document().api)),
    ),
  );
  http.get("/docs/errors", (request, reply) =>
    html(
      request,
      reply,
      sent("/docs/errors", () => errorsPage(document().api)),
    ),
  );
  http.get<{ Params: { service: string } }>("/docs/:service", (request, reply) => {
    const { service } = request.params;
    return html(
      request,
      reply,
      sent(`/docs/${service}`, () => servicePage(document().api, service)),
    );
  });
}
