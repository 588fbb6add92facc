/** `moltwire key`: API keys. A secret is shown once, alone on standard output. */
import { timestampMs } from "@bufbuild/protobuf/wkt";
import { RoleSchema } from "../../gen/moltwire/api/v1/access_pb.ts";
import type { ApiKey } from "../../gen/moltwire/federation/v1/api_key_pb.ts";
import { ApiKeyService } from "../../gen/moltwire/federation/v1/api_key_service_pb.ts";
import { agentIdOf } from "./agent-name.ts";
import { addCall } from "./call.ts";
import { addNoun, type Noun } from "./command.ts";
import { duration, type Field, number, oneOf, timeToCome } from "./field.ts";
import { addList } from "./list.ts";
import { nameIn } from "./names.ts";
import { note, paint, paintError, plain } from "./output.ts";
import { age, at, type Column, type Fact, renderFacts } from "./table.ts";

const { createApiKey, getApiKey, listApiKeys, updateApiKey, rotateApiKey, revokeApiKey } = ApiKeyService.method;

const which: Field = { name: "keyId", as: "<key>", help: "its id: key_…" };

const uses: readonly Field[] = [
  {
    name: "allowedNetworks",
    as: "--allow-ip <network>",
    help: "where it may be used from: an address, or a CIDR such as 203.0.113.0/24; may be repeated",
    many: true,
  },
  {
    name: "requestsPerMinute",
    as: "--rate <number>",
    help: "how many requests it may make in any 60 s; 0: as many as whom it speaks for",
    read: number,
  },
];

/** Adds the commands. */
export const key: Noun = (program) => {
  const noun = addNoun(program, "key", "keys: who may call, and what they may do").addHelpText(
    "after",
    "\nWhat a key may do is never changed, and no key is deleted, so that it stays known who could do what: revoke it, or rotate it.",
  );
  addCall(noun, {
    name: "create",
    summary: "make a key; standard output gets its secret, this once, and nothing else",
    example: "umask 077; moltwire key create --agent planner > planner.key",
    method: createApiKey,
    fields: [
      { name: "agentId", as: "--agent <agent>", help: "the agent it is bound to: its name or id", read: agentIdOf },
      {
        name: "role",
        as: "--role <role>",
        help: "agent, org or operator (default: agent with --agent, else org)",
        read: oneOf(RoleSchema),
      },
      { name: "name", as: "--name <text>", help: "what it is for" },
      {
        name: "scopes",
        as: "--scope <scope>",
        help: "all that it may do, such as tasks:write; may be repeated",
        many: true,
      },
      {
        name: "expireTime",
        as: "--expires <when>",
        help: "a span from now such as 30d, or a date and time",
        read: timeToCome,
      },
      ...uses,
    ],
    from: true,
    show: ({ apiKey, secret }) => handOver(apiKey!, secret),
  });
  addList(noun, {
    summary: "list keys, oldest first, without secrets",
    method: listApiKeys,
    filters: [
      { name: "agentId", as: "--agent <agent>", help: "only those of this agent: its name or id", read: agentIdOf },
      {
        name: "prefix",
        as: "--prefix <text>",
        help: "only those that begin so: key_… or mw_…, and none of the secret",
      },
    ],
    rows: ({ apiKeys }) => apiKeys,
    columns,
    things: "keys",
    first: "moltwire key create --agent AGENT",
  });
  addCall(noun, {
    name: "get",
    summary: "show a key, also one that has ended, without its secret",
    method: getApiKey,
    fields: [which],
    show: (response) => describe(response.apiKey!),
  });
  addCall(noun, {
    name: "update",
    summary: "change where and how much a key may be used; lists are replaced whole",
    example: "moltwire key update KEY --allow-ip 203.0.113.0/24 --allow-ip 2001:db8::/32",
    method: updateApiKey,
    fields: [{ ...which, as: "[key]", required: true }],
    change: uses,
    from: true,
    show: (response) => describe(response.apiKey!),
  });
  addCall(noun, {
    name: "rotate",
    summary: "make a key that may do the same; the old one runs out after the overlap",
    method: rotateApiKey,
    fields: [
      which,
      {
        name: "overlap",
        as: "--overlap <span>",
        help: "how long the old one still works (default: 1d)",
        read: duration,
      },
    ],
    show: ({ apiKey, secret, oldKeyExpireTime }) =>
      handOver(apiKey!, secret, [["old key", `works until ${at(oldKeyExpireTime)}`]]),
  });
  addCall(noun, {
    name: "revoke",
    summary: "end a key at once",
    method: revokeApiKey,
    fields: [which],
    show: (response) => describe(response.apiKey!),
  });
};

const columns: readonly Column<ApiKey>[] = [
  { title: "KEY", cell: ({ keyId }) => keyId },
  { title: "STATE", cell: (row) => state(row), colour: (row) => (state(row) === "active" ? "green" : "yellow") },
  { title: "ROLE", cell: ({ role }) => nameIn(RoleSchema, role).toLowerCase() },
  { title: "AGE", cell: ({ createTime }) => age(createTime), right: true },
  { title: "USED", cell: ({ lastUsedTime }) => (lastUsedTime ? `${age(lastUsedTime)} ago` : "never"), right: true },
  { title: "NAME", cell: ({ name }) => name, cut: true },
  { title: "SCOPES", cell: ({ scopes }) => scopes.join(" "), cut: true },
];

/** Says all but the secret on standard error, so that standard output can be kept as it is. */
function handOver(apiKey: ApiKey, secret: string, more: readonly Fact[] = []): string[] {
  for (const line of describe(apiKey, more)) note(line);
  if (secret === "") {
    note(
      `${paintError("yellow", "!")} its secret was shown when it was made; if that is lost: moltwire key rotate ${apiKey.keyId}`,
    );
    return [];
  }
  note(
    paintError(["yellow", "bold"], "\nits secret, shown this once; keep it now, and where no one else can read it:"),
  );
  return [secret];
}

function describe(apiKey: ApiKey, more: readonly Fact[] = []): string[] {
  return renderFacts(`${paint("bold", apiKey.keyId)}  ${state(apiKey)}`, [
    ["name", apiKey.name],
    ["role", nameIn(RoleSchema, apiKey.role).toLowerCase()],
    ["agent", apiKey.agentId],
    ["scopes", apiKey.scopes.map(plain).join(" ") || "all of its role"],
    ["only from", apiKey.allowedNetworks.map(plain).join(" ")],
    ["requests a minute", apiKey.requestsPerMinute ? String(apiKey.requestsPerMinute) : ""],
    ["made", at(apiKey.createTime)],
    ["from", apiKey.rotatedFromKeyId],
    ["expires", at(apiKey.expireTime)],
    ["revoked", at(apiKey.revokeTime)],
    ...more,
  ]);
}

function state({ revokeTime, expireTime }: ApiKey): string {
  if (revokeTime) return "revoked";
  return expireTime && timestampMs(expireTime) <= Date.now() ? "expired" : "active";
}
