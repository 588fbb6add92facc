import type { HandlerContext } from "@connectrpc/connect";
import type { App } from "../app.ts";
import type { Queryable } from "../db/db.ts";
import { type Caller, callerOf, traceOf } from "./caller.ts";
import { orgNamed, orgOf } from "./scope.ts";
import type { TraceContext } from "./trace-context.ts";

/** What a query's body has: committed, durable state, who asks, where, when. */
export type Query = {
  readonly db: Queryable;
  readonly caller: Caller;
  /** The organisation it looks at. */
  readonly orgId: string;
  readonly now: number;
  readonly trace: TraceContext;
};

/** A method that only reads. */
export const query =
  <Request extends object, Reply>(app: App, body: (request: Request, query: Query) => Promise<Reply>) =>
  async (request: Request, context: HandlerContext): Promise<Reply> => {
    const caller = callerOf(context);
    const db = app.db.query;
    const orgId = await orgOf(db, caller, orgNamed(request));
    return body(request, { db, caller, orgId, now: app.clock.now(), trace: traceOf(context) });
  };
