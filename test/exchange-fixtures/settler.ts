/**
 * A server that sets aside and settles prices meanwhile, each in two transactions, to be killed between them: `node settler.ts '{"data": …}' 600 200` does 600, under the
 * same ids at every start, and waits for ever when it has begun 200. Each lane sets the next one aside before it settles one, so that some are always between the two
 * until all are done.
 */
import { pino } from "pino";
import { TransactionKind } from "../../gen/moltwire/exchange/v1/ledger_pb.ts";
import { agentWallet, issuanceOf, walletOf } from "../../src/exchange/ledger/account.ts";
import { postTransfers } from "../../src/exchange/ledger/post.ts";
import { reserve, settle } from "../../src/exchange/ledger/reserve.ts";
import { createServer } from "../../src/server.ts";

const options = JSON.parse(process.argv[2]!) as object;
const count = Number(process.argv[3]);
const waitAt = Number(process.argv[4] ?? count + 1);
const server = await createServer({ port: 0, rateLimit: 0, log: pino({ level: "silent" }), ...options });
console.error(`listening on ${await server.listen()}`);

const { db, clock, homeOrgId: orgId } = server.app;
const kind = TransactionKind.TRANSFER;
const [from, to] = [walletOf(orgId), agentWallet(orgId, "agt_1")];
const fund = { does: "move", transferId: "fund", kind, from: issuanceOf(orgId), to: from } as const;
await db.tx((tx) => postTransfers(tx, [{ ...fund, amount: BigInt(count) * 3n }], clock.now()));

let next = 0;
const setAside = async () => {
  if (next === count) return undefined;
  if (next === waitAt) await new Promise(() => {});
  const transferId = `p${next++}`;
  await db.tx((tx) => reserve(tx, { transferId, kind, from, to, amount: 3n }, clock.now()));
  return transferId;
};
const lane = async () => {
  let following: string | undefined;
  for (let transferId = await setAside(); transferId; transferId = following) {
    following = await setAside();
    const price = { orgId, transferId };
    await db.tx((tx) => settle(tx, price, 2n, clock.now()));
  }
};
await Promise.all(Array.from({ length: 8 }, lane));
