/** The accounts there are. They need not be made: one that was never paid is there with 0. */
import { AccountKind } from "../../../gen/moltwire/exchange/v1/ledger_pb.ts";

/** An account by its name. */
export type Account = { readonly orgId: string; readonly accountId: string };

/** A row in which an account's balance is kept. */
export type Slot = Account & { readonly shard: number };

const walletId = "wallet";
export const feesId = "fees";
export const issuanceId = "issuance";

/** An organisation's own credits. */
export const walletOf = (orgId: string): Account => ({ orgId, accountId: walletId });

/** The credits of one of its agents. */
export const agentWallet = (orgId: string, agentId: string): Account => ({ orgId, accountId: agentId });

/** Credits that belong to nobody until a marketplace task is done: of the organisation that posted it. `taskId`: `mkt_…`. */
export const escrowOf = (orgId: string, taskId: string): Account => ({ orgId, accountId: taskId });

/** What the platform earned. */
export const feesOf = (homeOrgId: string): Account => ({ orgId: homeOrgId, accountId: feesId });

/** Where credits come from: below zero by what all other accounts hold. */
export const issuanceOf = (homeOrgId: string): Account => ({ orgId: homeOrgId, accountId: issuanceId });

/** What an account is for, by its id. UNSPECIFIED: no account has such an id. */
export function kindOfAccount(accountId: string): AccountKind {
  if (accountId === walletId) return AccountKind.ORG_WALLET;
  if (accountId === feesId) return AccountKind.FEES;
  if (accountId === issuanceId) return AccountKind.ISSUANCE;
  if (accountId.startsWith("agt_")) return AccountKind.AGENT_WALLET;
  return accountId.startsWith("mkt_") ? AccountKind.ESCROW : AccountKind.UNSPECIFIED;
}

/** Whether an account is the platform's and not a customer's. */
export const isPlatform = (accountId: string): boolean => accountId === feesId || accountId === issuanceId;

/** Whether an account may go below zero. */
export const isSource = (accountId: string): boolean => accountId === issuanceId;

/**
 * In how many rows the platform's accounts are kept. Fees are paid by every call for money, and a row that all of them lock until they commit would let PostgreSQL do one
 * after the other. Rows that are summed when somebody reads keep them apart, and, unlike a balance that is only ever summed from transfers, they cost a reader
 * 16 rows and not the whole history, and hold something that can be proved against it.
 */
const platformShards = 16;

/** The row in which a transfer keeps its share of an account; what ends or undoes another transfer is kept where that one is, by the same `rootId`, as far as it is known. */
export const slotOf = ({ orgId, accountId }: Account, rootId: string): Slot => ({
  orgId,
  accountId,
  shard: isPlatform(accountId) ? hash(rootId) % platformShards : 0,
});

/** All rows of an account. */
export const slotsOfAccount = ({ orgId, accountId }: Account): Slot[] =>
  Array.from({ length: isPlatform(accountId) ? platformShards : 1 }, (_, shard) => ({ orgId, accountId, shard }));

/** Whether an account is kept in several rows of which none may go below zero: who pays from it needs them all. */
export const isScattered = (accountId: string): boolean => isPlatform(accountId) && !isSource(accountId);

/** A name of a row for maps. Ids have no blanks. */
export const slotKey = ({ orgId, accountId, shard }: Slot): string => `${orgId} ${accountId} ${shard}`;

/** In the order in which all lock them. */
export const inLockOrder = (slots: Iterable<Slot>): Slot[] =>
  [...slots].sort((a, b) => compare(a.orgId, b.orgId) || compare(a.accountId, b.accountId) || a.shard - b.shard);

const compare = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);

/** FNV-1a of 32 bits (http://www.isthe.com/chongo/tech/comp/fnv/), of UTF-16 units. */
function hash(text: string): number {
  let value = 0x811c9dc5;
  for (let at = 0; at < text.length; at++) value = Math.imul(value ^ text.charCodeAt(at), 0x01000193);
  return value >>> 0;
}

/** The most that an account holds, in micro-credits: what 64 bits with a sign do. */
export const mostHeld = 2n ** 63n - 1n;

/** The most that one row of the issuance has given: together they never give more than {@link mostHeld}, and so no account that is paid can overflow. */
export const mostIssued = mostHeld / BigInt(platformShards);
