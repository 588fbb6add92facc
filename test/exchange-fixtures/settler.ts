/**
 * A server that sets aside and settles prices meanwhile, each in two transactions, to be killed between them: `node settler.ts '{"data": …}' 600` does 600, under the same
 * ids at every start.
 */
import { pino } from "pino";
import { TransactionKind } from "../../gen/moltwire/exchange/v1/ledger_pb.ts";
import { agentWallet, issuanceOf, walletOf } from "../../src/exchange/ledger/account.ts";
import { postTransfers } from "../../src/exchange/ledger/post.ts";
import { reserve, settle } from "../../src/exchange/ledger/reserve.ts";
import { createServer } from "../../src/server.ts";

const options = JSON.parse(process.argv[2]!) as object;
const count = Number(process.argv[3]);
const server = await createServer({ port: 0, rateLimit: 0, log: pino({ level: "silent" }), ...options });
console.error(`listening on ${await server.listen()}`);

const { db, clock, homeOrgId: orgId } = server.app;
const kind = TransactionKind.TRANSFER;
const [from, to] = [walletOf(orgId), agentWallet(orgId, "agt_1")];
const fund = { does: "move", transferId: "fund", kind, from: issuanceOf(orgId), to: from } as const;
await db.tx((tx) => postTransfers(tx, [{ ...fund, amount: BigInt(count) * 3n }], clock.now()));

let next = 0;
const lane = async () => {
  while (next < count) {
    const transferId = `p${next++}`;
    await db.tx((tx) => reserve(tx, { transferId, kind, from, to, amount: 3n }, clock.now()));
    await db.tx((tx) => settle(tx, { orgId, transferId }, 2n, clock.now()));
  }
};
await Promise.all(Array.from({ length: 8 }, lane));
