/** `moltwire grant`: what one organisation lets another ask for. */
import { TrustTierSchema } from "../../gen/moltwire/bus/v1/agent_pb.ts";
import {
  type Grant,
  type GrantDayUsage,
  GrantPartySchema,
  GrantState,
  GrantStateSchema,
} from "../../gen/moltwire/federation/v1/grant_pb.ts";
import { GrantService } from "../../gen/moltwire/federation/v1/grant_service_pb.ts";
import { addCall } from "./call.ts";
import { addNoun, type Noun } from "./command.ts";
import { choices, type Field, number, oneOf, timeToCome } from "./field.ts";
import { addList } from "./list.ts";
import { nameIn } from "./names.ts";
import { paint, plain, columns as width } from "./output.ts";
import { age, at, type Column, type Fact, renderFacts, renderTable } from "./table.ts";

const { createGrant, getGrant, listGrants, acceptGrant, declineGrant, updateGrant } = GrantService.method;
const { suspendGrant, resumeGrant, revokeGrant, getGrantUsage } = GrantService.method;

const which: Field = { name: "grantId", as: "<grant>", help: "its id: grt_…" };
const seen: Field = {
  name: "ifRevision",
  as: "--if-revision <number>",
  help: "only if nobody has changed it since it was at this revision",
  read: number,
};
const terms = (prefix: string): readonly Field[] => [
  { name: `${prefix}tokensPerDay`, as: "--tokens <number>", help: "tokens a day (UTC)", read: number },
  { name: `${prefix}requestsPerDay`, as: "--requests <number>", help: "requests a day (UTC)", read: number },
  { name: `${prefix}requestsPerMinute`, as: "--rate <number>", help: "requests in any 60 s", read: number },
  { name: `${prefix}priceCapMicros`, as: "--price-cap <micros>", help: "what a request costs at most", read: number },
  {
    name: `${prefix}expireTime`,
    as: "--expires <when>",
    help: "a span from now such as 30d, or a date and time",
    read: timeToCome,
  },
  {
    name: `${prefix}allowedTiers`,
    as: "--tier <tier>",
    help: `only agents of this tier ask: ${choices(TrustTierSchema)}; may be repeated`,
    many: true,
    read: oneOf(TrustTierSchema),
  },
  {
    name: `${prefix}allowedTools`,
    as: "--tool <name>",
    help: "only work that needs these; may be repeated",
    many: true,
  },
  { name: `${prefix}purpose`, as: "--purpose <text>", help: "what it is for" },
];

/** Adds the commands. */
export const grant: Noun = (program) => {
  const noun = addNoun(program, "grant", "what one organisation lets another ask for");
  addCall(noun, {
    name: "create",
    summary: "propose a grant to another organisation",
    example: "moltwire grant create org_… --capability research --tokens 50000 --expires 30d",
    method: createGrant,
    fields: [
      { name: "granteeOrgId", as: "[organisation]", help: "whom to let in, by its id", required: true },
      { name: "contractId", as: "--contract <contract>", help: "on a contract, in every version" },
      { name: "capability", as: "--capability <name>", help: "on contracts that ask for a capability" },
      { name: "namespace", as: "--namespace <name>", help: "on contracts of a namespace" },
      ...terms("terms."),
    ],
    from: true,
    show: (response) => describe(response.grant!),
  });
  addList(noun, {
    summary: "list the grants that the organisation gives and gets, newest first",
    method: listGrants,
    filters: [
      { name: "state", as: "--state <state>", help: choices(GrantStateSchema), read: oneOf(GrantStateSchema) },
      { name: "party", as: "--party <party>", help: choices(GrantPartySchema), read: oneOf(GrantPartySchema) },
      { name: "counterpartyOrgId", as: "--with <organisation>", help: "only those with this organisation, by its id" },
    ],
    rows: ({ grants }) => grants,
    columns,
    things: "grants",
    first: "moltwire grant create ORGANISATION --contract CONTRACT",
  });
  addCall(noun, {
    name: "get",
    summary: "show a grant and its terms",
    method: getGrant,
    fields: [which],
    show: (response) => describe(response.grant!),
  });
  const act = {
    fields: [which, seen],
    show: ({ grant: row }: { readonly grant?: Grant | undefined }) => describe(row!),
  };
  addCall(noun, {
    name: "accept",
    summary: "put a proposal in force; for the organisation that is let in",
    method: acceptGrant,
    ...act,
  });
  addCall(noun, {
    name: "decline",
    summary: "end a proposal; for the organisation that is let in",
    method: declineGrant,
    ...act,
  });
  addCall(noun, {
    name: "suspend",
    summary: "hold a grant: open tasks end; for the organisation that lets in",
    method: suspendGrant,
    ...act,
  });
  addCall(noun, { name: "resume", summary: "put a suspended grant in force again", method: resumeGrant, ...act });
  addCall(noun, { name: "revoke", summary: "end a grant for good: open tasks end", method: revokeGrant, ...act });
  addCall(noun, {
    name: "update",
    summary: "change the terms; for the organisation that lets in",
    example: "moltwire grant update grt_… --tokens 100000",
    method: updateGrant,
    fields: [which, seen],
    change: terms(""),
    show: (response) => describe(response.grant!),
  });
  addCall(noun, {
    name: "usage",
    summary: "show what was used under a grant by day, latest first",
    method: getGrantUsage,
    fields: [
      which,
      { name: "startDate", as: "--start <day>", help: "the first day, such as 2030-01-31" },
      { name: "endDate", as: "--end <day>", help: "the last day" },
    ],
    show: ({ days }) => (days.length > 0 ? renderTable(ofDays, days, width()) : ["nothing was used yet"]),
  });
};

const columns: readonly Column<Grant>[] = [
  { title: "GRANT", cell: ({ grantId }) => grantId },
  {
    title: "STATE",
    cell: ({ state }) => nameIn(GrantStateSchema, state),
    colour: ({ state }) => (state === GrantState.ACTIVE ? "green" : "yellow"),
  },
  { title: "FROM", cell: ({ grantorOrgId }) => grantorOrgId },
  { title: "TO", cell: ({ granteeOrgId }) => granteeOrgId },
  { title: "ON", cell: (row) => subject(row), cut: true },
  { title: "AGE", cell: ({ createTime }) => age(createTime), right: true },
];

const ofDays: readonly Column<GrantDayUsage>[] = [
  { title: "DAY", cell: ({ date }) => date },
  { title: "REQUESTS", cell: ({ requests }) => String(requests), right: true },
  { title: "REFUSED", cell: ({ denials }) => String(denials), right: true },
  { title: "TOKENS", cell: ({ tokens }) => String(tokens), right: true },
  { title: "SET ASIDE", cell: ({ reservedTokens }) => String(reservedTokens), right: true },
  { title: "COST", cell: ({ costMicros }) => String(costMicros), right: true },
];

const kinds = {
  contractId: "contract",
  capability: "capability",
  namespace: "namespace",
  listingId: "listing",
} as const;
const subject = ({ subject: { case: kind, value } }: Grant): string => (kind ? `${kinds[kind]} ${value}` : "");
const figure = (given: bigint | undefined): string => (given === undefined ? "" : String(given));

function describe(row: Grant): string[] {
  const { terms: of } = row;
  const facts: Fact[] = [
    ["from", row.grantorOrgId],
    ["to", row.granteeOrgId],
    ["on", subject(row)],
    ["purpose", of?.purpose ?? ""],
    ["tokens a day", figure(of?.tokensPerDay)],
    ["requests a day", figure(of?.requestsPerDay)],
    ["requests a minute", of?.requestsPerMinute === undefined ? "" : String(of.requestsPerMinute)],
    ["price cap", figure(of?.priceCapMicros)],
    ["tiers", (of?.allowedTiers ?? []).map((tier) => nameIn(TrustTierSchema, tier)).join(" ")],
    ["tools", (of?.allowedTools ?? []).map(plain).join(" ")],
    ["expires", at(of?.expireTime)],
    ["made", at(row.createTime)],
    ["revision", `${row.revision}, of ${at(row.updateTime)}`],
  ];
  return renderFacts(`${paint("bold", row.grantId)}  ${nameIn(GrantStateSchema, row.state)}`, facts);
}
