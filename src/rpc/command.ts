import type { DescMessage, MessageInitShape, MessageShape } from "@bufbuild/protobuf";
import { create } from "@bufbuild/protobuf";
import type { HandlerContext } from "@connectrpc/connect";
import type { App } from "../app.ts";
import {
  type Body,
  ClosedError,
  type Db,
  OutcomeUnknownError,
  OverloadedError,
  type Tx,
  UnavailableError,
} from "../db/db.ts";
import { Refused } from "../errors.ts";
import { writeAudit } from "../ops/audit-store.ts";
import { accessOf, methodName } from "./access.ts";
import { type Caller, callerOf, traceOf } from "./caller.ts";
import {
  dropKey,
  type IdempotencyScope,
  idempotencyKey,
  keepReply,
  requestDigest,
  storedReply,
  takeKey,
} from "./idempotency.ts";
import { orgNamed, orgOf } from "./scope.ts";
import type { TraceContext } from "./trace-context.ts";

/** What a command's body has: the transaction it happens in, who asks, where, when. */
export type Command = {
  readonly tx: Tx;
  readonly caller: Caller;
  /** The organisation it acts in. */
  readonly orgId: string;
  readonly now: number;
  readonly trace: TraceContext;
};

/** The outcome of {@link runCommand}: the reply, and whether it was a stored one. */
export type Done<Reply> = { readonly reply: Reply; readonly replayed: boolean };

type Handler<Request, Reply> = (request: Request, context: HandlerContext) => Promise<Reply>;

/**
 * A method that changes something: one transaction holds the idempotency record, the effect, the events and the audit row, and the answer
 * goes out after it is durable. The body awaits nothing but its `tx`; it may run more than once. A {@link Refused} commits
 * what the body wrote before it is answered; anything else thrown undoes it.
 */
export const command =
  <Request extends object, Reply>(
    app: App,
    body: (request: Request, command: Command) => Promise<Reply>,
  ): Handler<Request, Reply> =>
  async (request, context) =>
    (await runCommand(app, request, context, body)).reply;

/** What of a call's context a command needs: frames of a conversation are commands with a context of their own. */
export type CommandContext = Pick<HandlerContext, "method" | "values" | "requestHeader" | "responseHeader">;

/** As {@link command}, for a handler that has more to do after the commit. `noted` stands in the audit row beside the ids. */
export async function runCommand<Request extends object, Reply>(
  app: App,
  request: Request,
  context: CommandContext,
  body: (request: Request, command: Command) => Promise<Reply>,
  noted: Readonly<Record<string, string>> = {},
): Promise<Done<Reply>> {
  const { method } = context;
  const caller = callerOf(context);
  const trace = traceOf(context);
  const key = idempotencyKey(context.requestHeader);
  const { audited } = accessOf(method);
  const digest = key || audited ? requestDigest(method.input, request as unknown as MessageShape<DescMessage>) : "";

  const outcome = await (key ? knownOutcome : once)(
    app.db,
    async (tx): Promise<Done<Reply> | { readonly refused: Refused }> => {
      const now = app.clock.now();
      const orgId = await orgOf(tx, caller, orgNamed(request));
      const scope: IdempotencyScope | undefined = key
        ? { orgId, caller: caller.agentId || caller.keyId || digest, method: methodName(method), key }
        : undefined;
      if (scope) {
        const stored = await takeKey(tx, scope, digest, now);
        if (stored) return { reply: storedReply(app.vault, scope, method.output, stored) as Reply, replayed: true };
      }
      try {
        const reply = await body(request, { tx, caller, orgId, now, trace });
        if (audited) await writeAudit(tx, app, { caller, orgId, now, trace, method, digest, request, reply, noted });
        if (scope)
          await keepReply(
            tx,
            app.vault,
            scope,
            method.output,
            create(method.output, reply as MessageInitShape<DescMessage>),
          );
        return { reply, replayed: false };
      } catch (error) {
        if (!(error instanceof Refused)) throw error;
        if (scope) await dropKey(tx, scope);
        return { refused: error };
      }
    },
  );
  if ("refused" in outcome) throw outcome.refused;
  if (outcome.replayed) context.responseHeader.set("idempotency-replayed", "true");
  return outcome;
}

const once = <T>(db: Db, body: Body<T>): Promise<T> => db.tx(body);

/** For a command whose idempotency record commits with it: when the outcome of a commit is not known, the record tells it, and the body runs again only if there was none. */
async function knownOutcome<T>(db: Db, body: Body<T>): Promise<T> {
  let unknown: OutcomeUnknownError | undefined;
  for (let attempt = 1; ; attempt++) {
    try {
      return await db.tx(body);
    } catch (error) {
      // That nothing was done holds for this try only.
      const undone = [UnavailableError, OverloadedError, ClosedError].some((kind) => error instanceof kind);
      if (error instanceof OutcomeUnknownError) unknown = error;
      else throw undone && unknown ? unknown : error;
      if (attempt === maxCommits) throw error;
    }
  }
}

const maxCommits = 3;
