/** `moltwire billing`: credits, and where they came from and went to. */
import { toJson } from "@bufbuild/protobuf";
import { BillingService, type DayEarnings } from "../../gen/moltwire/exchange/v1/billing_service_pb.ts";
import {
  type Balance,
  type CreditTransfer,
  type Transaction,
  TransactionKindSchema,
  TransactionStepSchema,
} from "../../gen/moltwire/exchange/v1/ledger_pb.ts";
import { agentIdOf } from "./agent-name.ts";
import { addCall } from "./call.ts";
import { addNoun, type Noun, run, withServer } from "./command.ts";
import { connectClients } from "./connect.ts";
import { credits, creditsText } from "./credits.ts";
import { exitCodes } from "./exit-codes.ts";
import { choices, declare, type Field, oneOf } from "./field.ts";
import { addList } from "./list.ts";
import { nameIn } from "./names.ts";
import { paint, plain, printJson } from "./output.ts";
import { readRequest } from "./request.ts";
import { type ConnectionOptions, readSettings } from "./settings.ts";
import { at, type Column, renderFacts } from "./table.ts";

const { getBalance, listTransactions, exportTransactions, getEarnings, topUp, transferCredits } = BillingService.method;

const filters: readonly Field[] = [
  { name: "agentId", as: "--agent <agent>", help: "of this agent's wallet: its name or id", read: agentIdOf },
  { name: "accountId", as: "--account <account>", help: "of this account, such as wallet, fees or issuance" },
  {
    name: "kind",
    as: "--kind <kind>",
    help: `for this: ${choices(TransactionKindSchema)}`,
    read: oneOf(TransactionKindSchema),
  },
  { name: "startTime", as: "--since <time>", help: "from this time on, such as 2030-01-31T12:00:00Z" },
  { name: "endTime", as: "--until <time>", help: "before this time" },
];
const howMuch: Field = { name: "amountMicros", as: "<credits>", help: "how many, such as 12 or 0.5", read: credits };
const known: readonly Field[] = [
  { name: "reference", as: "--reference <text>", help: "what it is known as elsewhere, such as an invoice" },
  { name: "transferId", as: "--id <transfer>", help: "an id of your choice, txn_…: with it, it happens once for ever" },
];

/** Adds the commands. */
export const billing: Noun = (program) => {
  const noun = addNoun(program, "billing", "credits: who has how many, and where they came from and went to");
  addCall(noun, {
    name: "balance",
    summary: "how a wallet stands: the agent's of the key, else the organisation's",
    method: getBalance,
    fields: filters.slice(0, 2),
    show: ({ balance }) => describe(balance!),
  });
  addList(noun, {
    name: "transactions",
    summary: "the lines of all accounts, or of one, newest first",
    method: listTransactions,
    filters,
    rows: ({ transactions }) => transactions,
    columns,
    things: "transactions",
    first: "moltwire billing top-up CREDITS --org ORGANISATION",
  });
  const csv = noun.command("export").description("the same lines as CSV, to standard output");
  declare(csv, filters);
  withServer(csv, exportTransactions).action(run((options: ConnectionOptions) => exportCsv(csv, options)));
  addList(noun, {
    name: "earnings",
    summary: "what was earned by listings, by day of UTC, latest first, and in all",
    method: getEarnings,
    filters: [
      { name: "listingId", as: "--listing <listing>", help: "by this listing" },
      { name: "startDate", as: "--since <date>", help: "from this day on, such as 2030-01-31" },
      { name: "endDate", as: "--until <date>", help: "up to this day" },
    ],
    rows: ({ days }) => days,
    columns: earned,
    foot: ({ total }) => [`${creditsText(total!.netMicros)} credits in all`],
    things: "earnings",
    first: "moltwire listing publish --help",
  });
  addCall(noun, {
    name: "top-up",
    summary: "give an organisation credits; for the operator",
    example: "moltwire billing top-up 500 --org org_… --reference 'invoice 17'",
    method: topUp,
    fields: [howMuch, ...known],
    show: ({ transfer, balance }) => [told(transfer!), ...describe(balance!)],
  });
  addCall(noun, {
    name: "transfer",
    summary: "move credits between the wallets of an organisation and its agents",
    example: "moltwire billing transfer 12.5 --to planner",
    method: transferCredits,
    fields: [
      howMuch,
      { name: "fromAgentId", as: "--from <agent>", help: "who pays (default: the organisation)", read: agentIdOf },
      { name: "toAgentId", as: "--to <agent>", help: "who is paid (default: the organisation)", read: agentIdOf },
      ...known,
    ],
    show: ({ transfer, from, to }) => [told(transfer!), ...describe(from!), ...describe(to!)],
  });
};

async function exportCsv(command: Parameters<typeof declare>[0], options: ConnectionOptions): Promise<number> {
  const settings = readSettings(options, process.env);
  const clients = connectClients(settings);
  const reading = { clients, orgId: options.org ?? "" };
  const request = await readRequest(exportTransactions.input, { fields: filters }, command, reading);
  for await (const part of clients(BillingService).exportTransactions(request)) {
    if (options.json) printJson(toJson(exportTransactions.output, part), 0);
    else process.stdout.write(part.csv);
  }
  return exitCodes.ok;
}

const told = ({ transferId, fromAccountId, toAccountId, amountMicros }: CreditTransfer): string =>
  `${paint("green", "✔")} ${creditsText(amountMicros)} credits from ${plain(fromAccountId)} to ${plain(toAccountId)}  ${plain(transferId)}`;

const describe = (balance: Balance): string[] =>
  renderFacts(paint("bold", plain(balance.accountId)), [
    ["available", `${creditsText(balance.availableMicros)} credits`],
    ["reserved", balance.reservedMicros > 0n ? `${creditsText(balance.reservedMicros)} credits` : ""],
  ]);

const columns: readonly Column<Transaction>[] = [
  { title: "TIME", cell: ({ time }) => at(time) },
  { title: "CREDITS", cell: ({ amountMicros }) => (amountMicros === 0n ? "" : creditsText(amountMicros)), right: true },
  {
    title: "RESERVED",
    cell: ({ reservedMicros }) => (reservedMicros === 0n ? "" : creditsText(reservedMicros)),
    right: true,
  },
  { title: "ACCOUNT", cell: ({ accountId }) => accountId },
  { title: "STEP", cell: ({ step }) => nameIn(TransactionStepSchema, step) },
  { title: "KIND", cell: ({ kind }) => nameIn(TransactionKindSchema, kind) },
  { title: "TRANSFER", cell: ({ transferId }) => transferId },
  { title: "REFERENCE", cell: ({ reference }) => reference, cut: true },
];

const earned: readonly Column<DayEarnings>[] = [
  { title: "DATE", cell: ({ date }) => date },
  { title: "LISTING", cell: ({ listingId }) => listingId },
  { title: "COMPLETED", cell: ({ earnings }) => String(earnings!.completedRequests), right: true },
  {
    title: "FAILED",
    cell: ({ earnings }) => (earnings!.failedRequests > 0n ? String(earnings!.failedRequests) : ""),
    right: true,
  },
  { title: "REQUESTS", cell: ({ earnings }) => creditsText(earnings!.requestsMicros), right: true },
  {
    title: "SUBSCRIPTIONS",
    cell: ({ earnings }) => (earnings!.subscriptionsMicros > 0n ? creditsText(earnings!.subscriptionsMicros) : ""),
    right: true,
  },
  { title: "FEES", cell: ({ earnings }) => creditsText(earnings!.feesMicros), right: true },
  { title: "EARNED", cell: ({ earnings }) => creditsText(earnings!.netMicros), right: true },
];
