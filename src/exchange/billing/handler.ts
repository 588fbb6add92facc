import { type Timestamp, timestampMs } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import { Role } from "../../../gen/moltwire/api/v1/access_pb.ts";
import type { BillingService } from "../../../gen/moltwire/exchange/v1/billing_service_pb.ts";
import { TransactionKind } from "../../../gen/moltwire/exchange/v1/ledger_pb.ts";
import type { App } from "../../app.ts";
import { findAgent, lockAgent } from "../../bus/agent-store.ts";
import type { Queryable, Tx } from "../../db/db.ts";
import { badField, notFound } from "../../errors.ts";
import { type Caller, callerOf } from "../../rpc/caller.ts";
import { command } from "../../rpc/command.ts";
import { watched } from "../../rpc/feed.ts";
import { readPage } from "../../rpc/page.ts";
import { query } from "../../rpc/query.ts";
import { orgOf, seesWholeOrg } from "../../rpc/scope.ts";
import { type Account, agentWallet, isPlatform, issuanceOf, walletOf } from "../ledger/account.ts";
import { postTransfers } from "../ledger/post.ts";
import { findTransfers, readStanding } from "../ledger/store.ts";
import { csvHead, csvLine } from "./csv.ts";
import { listEarnings, toDayEarnings, toEarnings, totalEarnings, windowOf } from "./earnings.ts";
import { type LineFilter, listLines, positionOf } from "./line-store.ts";
import { toBalance, toCreditTransfer, toTransaction } from "./message.ts";

const linesPerChunk = 1_000;

export const billingHandler = (app: App): ServiceImpl<typeof BillingService> => ({
  getBalance: query(app, async (req, { db, caller, orgId, now }) => {
    const accountId = accountNamed(req) || caller.agentId;
    const account = accountId === "" ? walletOf(orgId) : { orgId, accountId };
    const mayRead = mayReadAll(caller, account.accountId) || accountId === caller.agentId;
    const standing = mayRead ? await readStanding(db, account, now) : undefined;
    // An organisation and its agents have a wallet, paid or not.
    const isThere = standing !== undefined || account.accountId === walletOf(orgId).accountId;
    if (!mayRead || !(isThere || (await findAgent(db, orgId, accountId))))
      throw req.accountId ? notFound("account", req.accountId) : notFound("agent", accountId);
    return { balance: toBalance(account, standing) };
  }),

  listTransactions: query(app, async (req, { db, caller, orgId }) => {
    const filter = filterOf(req, caller);
    if (!filter) return { transactions: [], nextPageToken: "" };
    const scope = ["ListTransactions", orgId, ...Object.values(filter).map(String)];
    const read = (after: Parameters<typeof listLines>[3], limit: number) => listLines(db, orgId, filter, after, limit);
    const page = await readPage(app.cursors, scope, req, read, positionOf);
    return { transactions: page.rows.map(toTransaction), nextPageToken: page.nextPageToken };
  }),

  async *exportTransactions(req, context) {
    const caller = callerOf(context);
    const orgId = await orgOf(app.db.query, caller, req.orgId);
    yield* watched(app, context, (signal) => exported(app, orgId, filterOf(req, caller), signal));
  },

  getEarnings: query(app, async (req, { db, orgId, now }) => {
    const window = windowOf(req, now);
    const scope = ["GetEarnings", orgId, req.listingId, req.startDate, req.endDate];
    const read = (after: Parameters<typeof listEarnings>[3], limit: number) =>
      listEarnings(db, orgId, window, after, limit);
    const page = await readPage(app.cursors, scope, req, read, (row) => [row.day_ms, row.listing_id]);
    const total = toEarnings(await totalEarnings(db, orgId, window));
    return { days: page.rows.map(toDayEarnings), total, nextPageToken: page.nextPageToken };
  }),

  topUp: command(app, async (req, { tx, orgId, now }) => {
    const transferId = req.transferId || app.ids.next("txn");
    const wallet = walletOf(orgId);
    const move = { does: "move", transferId, kind: TransactionKind.TOP_UP, reference: req.reference } as const;
    const parties = { from: issuanceOf(app.homeOrgId), to: wallet, amount: req.amountMicros };
    const [transfer] = await postTransfers(tx, [{ ...move, ...parties }], now);
    return { transfer: toCreditTransfer(transfer!), balance: toBalance(wallet, await readStanding(tx, wallet, now)) };
  }),

  transferCredits: command(app, async (req, { tx, orgId, now }) => {
    if (req.fromAgentId === req.toAgentId)
      throw badField("to_agent_id", "both wallets are the same one: name an agent that pays, or one that is paid");
    const transferId = req.transferId || app.ids.next("txn");
    // What happened once is answered again, also where an agent has gone since: it is compared with what is asked for now.
    const isAgain = req.transferId !== "" && (await findTransfers(tx, [{ orgId, transferId }])).length > 0;
    const to = isAgain ? walletNamed(orgId, req.toAgentId) : await walletToPay(tx, orgId, req.toAgentId);
    const from = isAgain ? walletNamed(orgId, req.fromAgentId) : await walletThatPays(tx, orgId, req.fromAgentId, now);
    const move = { does: "move", transferId, kind: TransactionKind.TRANSFER, reference: req.reference } as const;
    const [transfer] = await postTransfers(tx, [{ ...move, from, to, amount: req.amountMicros }], now);
    const balanceOf = async (account: Account) => toBalance(account, await readStanding(tx, account, now));
    return { transfer: toCreditTransfer(transfer!), from: await balanceOf(from), to: await balanceOf(to) };
  }),
});

const walletNamed = (orgId: string, agentId: string): Account =>
  agentId === "" ? walletOf(orgId) : agentWallet(orgId, agentId);

/** Locked against being deleted, which would leave its wallet with the credits. */
async function walletToPay(tx: Tx, orgId: string, agentId: string): Promise<Account> {
  if (agentId === "") return walletOf(orgId);
  if (!(await lockAgent(tx, orgId, agentId))) throw notFound("agent", agentId);
  return agentWallet(orgId, agentId);
}

/** Of an agent that was deleted too, if it has one. */
async function walletThatPays(db: Queryable, orgId: string, agentId: string, now: number): Promise<Account> {
  if (agentId === "") return walletOf(orgId);
  const wallet = agentWallet(orgId, agentId);
  if (!(await findAgent(db, orgId, agentId)) && !(await readStanding(db, wallet, now)))
    throw notFound("agent", agentId);
  return wallet;
}

/** Whether it may read an account that is not its own: the platform's, which tell of all organisations, are the operator's alone. */
const mayReadAll = (caller: Caller, accountId: string): boolean =>
  isPlatform(accountId) ? caller.role === Role.OPERATOR : seesWholeOrg(caller);

type Named = { readonly agentId: string; readonly accountId: string };

/** The account that a request names; empty: none. */
function accountNamed({ agentId, accountId }: Named): string {
  if (agentId !== "" && accountId !== "") throw badField("account_id", "name an agent or an account, not both");
  return agentId || accountId;
}

type Filtered = Named & {
  readonly kind: TransactionKind;
  readonly startTime?: Timestamp | undefined;
  readonly endTime?: Timestamp | undefined;
};

/** What is asked for; undefined: what the caller may not see. */
function filterOf(req: Filtered, caller: Caller): LineFilter | undefined {
  const named = accountNamed(req);
  const accountId = seesWholeOrg(caller) ? named : caller.agentId;
  if (named !== "" && (named !== accountId || (seesWholeOrg(caller) && !mayReadAll(caller, named)))) return undefined;
  const startMs = req.startTime ? timestampMs(req.startTime) : null;
  const platform = caller.role === Role.OPERATOR;
  return { accountId, platform, kind: req.kind, startMs, endMs: req.endTime ? timestampMs(req.endTime) : null };
}

/** What there was when it was begun: lines come only at the end. */
async function* exported(
  app: App,
  orgId: string,
  filter: LineFilter | undefined,
  signal: AbortSignal,
): AsyncGenerator<{ csv: string }> {
  const endMs = Math.min(filter?.endMs ?? Number.MAX_SAFE_INTEGER, app.clock.now() + 1);
  let csv = csvHead;
  let after: ReturnType<typeof positionOf> | undefined;
  for (;;) {
    signal.throwIfAborted();
    const lines = filter ? await listLines(app.db.query, orgId, { ...filter, endMs }, after, linesPerChunk) : [];
    yield { csv: csv + lines.map(csvLine).join("") };
    if (lines.length < linesPerChunk) return;
    csv = "";
    after = positionOf(lines.at(-1)!);
  }
}
