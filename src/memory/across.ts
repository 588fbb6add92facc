/** Reads that may look into another organisation, at what is public there. */
import type { HandlerContext } from "@connectrpc/connect";
import { Role } from "../../gen/moltwire/api/v1/access_pb.ts";
import { callerOf } from "../rpc/caller.ts";

/** Which organisation is looked at: not the caller's own if `foreign`. */
export type Looked = { readonly orgId: string; readonly foreign: boolean };

type Handler<Request, Answer> = (request: Request, context: HandlerContext) => Answer;

/**
 * A read whose request may name another organisation. The usual rule, by which every other organisation is not found, holds for commands; here the body gets
 * to know which one is named, whether it exists or not, and has to show of it only what is public. The operator sees each as its own.
 */
export const across =
  <Request extends { readonly orgId: string }, Answer>(
    make: (looked: (own: string) => Looked) => Handler<Request, Answer>,
  ): Handler<Request, Answer> =>
  (request, context) => {
    const caller = callerOf(context);
    const named = request.orgId;
    const foreign = named !== "" && named !== caller.orgId && caller.role !== Role.OPERATOR;
    const run = make((own) => (foreign ? { orgId: named, foreign } : { orgId: own, foreign }));
    return run(foreign ? { ...request, orgId: "" } : request, context);
  };
