// Answers that Connect's handlers do not give: before a body is read, and for paths that nobody serves.

import { Code, ConnectError } from "@connectrpc/connect";
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import { dialectOf, errorAnswer, sendAnswer } from "./answer.ts";

/**
 * Answers an error in the caller's own protocol, without reading the body: Connect (JSON under the mapped status, or an
 * end-of-stream message), gRPC (trailers only), gRPC-Web (a trailer frame), and Connect's JSON for everyone else. Headers set
 * on the reply and the error's metadata go along. Afterwards `reply.sent` is true, so no later hook or handler runs:
 * `fastify.addHook("onRequest", async (request, reply) => { …; return refuse(reply, request, error); })`.
 */
export function refuse(reply: FastifyReply, request: FastifyRequest, error: ConnectError): FastifyReply {
  reply.hijack();
  sendAnswer(request.raw, reply.raw, errorAnswer(request.headers["content-type"], error), reply.getHeaders());
  return reply;
}

const rpcPath = /^\/(?:[A-Za-z_]\w*\.)+[A-Za-z_]\w*\/[A-Za-z_]\w*$/;

/** Whether the path of the URL is shaped like that of a method, served or not. */
export const isRpcPath = (url: string | undefined): boolean => rpcPath.test(url?.split("?", 1)[0] ?? "");

const isForMethod = ({ raw, headers }: FastifyRequest): boolean =>
  isRpcPath(raw.url) || dialectOf(headers["content-type"]) !== "connect";

/**
 * Answers a path that nobody serves. A path shaped like an RPC, or a caller that speaks one of the streaming protocols, gets
 * `unimplemented` in its own protocol (in Connect under status 404, which is how its clients know it); anything else
 * gets a small JSON 404.
 */
export function notFound(request: FastifyRequest, reply: FastifyReply): FastifyReply {
  const contentType = request.headers["content-type"];
  const error = isForMethod(request)
    ? new ConnectError("there is no such method", Code.Unimplemented)
    : new ConnectError("there is nothing here", Code.NotFound);
  const answer = errorAnswer(contentType, error);
  const status = dialectOf(contentType) === "connect" ? 404 : answer.status;
  reply.hijack();
  sendAnswer(request.raw, reply.raw, { ...answer, status }, reply.getHeaders());
  return reply;
}

/**
 * Makes `notFound` the answer to every path nobody serves, before its body is read or parsed. Hooks added earlier, such as
 * authentication, still come first. `onUnknown` is told of each.
 */
export function answerUnknownPaths(
  fastify: FastifyInstance,
  onUnknown: (code: Code, tookMs: number) => void = () => {},
): void {
  const answer = (request: FastifyRequest, reply: FastifyReply): FastifyReply => {
    notFound(request, reply);
    onUnknown(isForMethod(request) ? Code.Unimplemented : Code.NotFound, reply.elapsedTime);
    return reply;
  };
  fastify.addHook("onRequest", async (request, reply) => {
    if (request.is404) return answer(request, reply);
  });
  fastify.setNotFoundHandler(answer);
}
