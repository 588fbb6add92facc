import type { DescService } from "@bufbuild/protobuf";
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import { Role } from "../../gen/moltwire/api/v1/access_pb.ts";
import type { App } from "../app.ts";
import { Fault, toConnectError } from "../errors.ts";
import { holdsScope, methodName, roleName } from "../rpc/access.ts";
import { authenticate, keyInHeaders } from "../rpc/auth.ts";
import { clientAddress } from "../rpc/client-address.ts";
import { takeStranger } from "../rpc/limits.ts";
import { refuse } from "../rpc/refuse.ts";
import { traceContext } from "../rpc/trace-context.ts";
import { version } from "../version.ts";

/** What is served beside RPCs: `/` is the console for browsers and says what this is to programs, `/metrics` is for Prometheus and needs the operator's key. */
export function servePages(
  http: FastifyInstance,
  app: App,
  services: readonly DescService[],
  consolePage: (request: FastifyRequest, reply: FastifyReply) => FastifyReply,
): void {
  const methods = services.flatMap((service) => service.methods.map(methodName));
  http.get("/", async (request, reply) => {
    reply.header("vary", "accept, accept-encoding");
    if (request.headers.accept?.includes("text/html")) return consolePage(request, reply);
    if (request.headers.accept?.includes("application/json")) return { name: "moltwire", version, methods };
    return reply
      .type("text/plain; charset=utf-8")
      .send(
        `Moltwire ${version}\n\nCall a method with POST /<method> and a JSON body:\n\n${methods.map((name) => `  ${name}\n`).join("")}`,
      );
  });
  http.get("/metrics", async (request, reply) => {
    const { traceId } = traceContext(request.headers.traceparent?.toString() ?? null, app.ids);
    reply.header("x-trace-id", traceId);
    try {
      await checkReader(app, request).catch(async (error: unknown) => {
        await takeStranger(app.limiters, error, clientAddress(request), new Headers());
        throw error;
      });
    } catch (error) {
      if (error instanceof Fault) return refuse(reply, request, toConnectError(error, traceId));
      throw error;
    }
    return reply.type(app.metrics.contentType).send(await app.metrics.text());
  });
}

/** Throws unless the key is the operator's and may read. */
async function checkReader(app: App, request: FastifyRequest): Promise<void> {
  const { authorization, "x-api-key": xApiKey } = request.headers;
  const key = keyInHeaders(authorization, typeof xApiKey === "string" ? xApiKey : undefined);
  const caller = await authenticate(app, key, clientAddress(request));
  if (caller.role === Role.PUBLIC) throw new Fault("KEY_MISSING", "metrics need the operator's key");
  if (!holdsScope(caller.scopes, "status:read"))
    throw new Fault("SCOPE_REQUIRED", "the key lacks the scope status:read", { required_scope: "status:read" });
  if (caller.role !== Role.OPERATOR)
    throw new Fault("ROLE_REQUIRED", "metrics need the operator's key", {
      role: roleName(caller.role),
      required_role: "OPERATOR",
    });
}
