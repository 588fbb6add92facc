/** `moltwire peer`: other servers that this one federates with. */
import {
  type Peer,
  type PeerKey,
  PeerState,
  PeerStateSchema,
  type ServerIdentity,
} from "../../gen/moltwire/federation/v1/peer_pb.ts";
import { PeerService } from "../../gen/moltwire/federation/v1/peer_service_pb.ts";
import { addCall } from "./call.ts";
import { addNoun, type Noun } from "./command.ts";
import { duration, type Field } from "./field.ts";
import { addList } from "./list.ts";
import { nameIn } from "./names.ts";
import { paint } from "./output.ts";
import { age, at, type Column, type Fact, renderFacts } from "./table.ts";

const { getIdentity, addPeer, listPeers, removePeer, rotatePeerKey, syncPeer } = PeerService.method;

const which: Field = { name: "peerId", as: "<peer>", help: "its id: per_…" };

/** Adds the commands. */
export const peer: Noun = (program) => {
  const noun = addNoun(program, "peer", "other servers that this one federates with; for the operator");
  addCall(noun, {
    name: "identity",
    summary: "show what the operator of another server needs in order to add this one",
    method: getIdentity,
    fields: [],
    show: ({ identity }) => describeSelf(identity!),
  });
  addCall(noun, {
    name: "add",
    summary: "add a server, with an organisation that stands for it here",
    example: "moltwire peer add beta https://beta.example --audience org_… --key … --remote-org org_…",
    method: addPeer,
    fields: [
      { name: "name", as: "[name]", help: "lower-case letters, digits and -", required: true },
      { name: "baseUrl", as: "[url]", help: "where it is: a scheme, a host and perhaps a port", required: true },
      { name: "audience", as: "--audience <text>", help: "what it calls itself: `peer identity` there tells" },
      { name: "publicKeys", as: "--key <base64>", help: "its public key; may be repeated", many: true },
      { name: "orgId", as: "--as <organisation>", help: "the organisation that stands for it (default: a new one)" },
      { name: "remoteOrgId", as: "--remote-org <organisation>", help: "whose contracts over there are offered here" },
    ],
    from: true,
    show: (response) => describe(response.peer!),
  });
  addList(noun, {
    summary: "list the peers, oldest first",
    method: listPeers,
    filters: [{ name: "includeRemoved", as: "--removed", help: "those that are removed, too" }],
    rows: ({ peers }) => peers,
    columns,
    things: "peers",
    first: "moltwire peer add NAME URL --audience ORGANISATION --key KEY",
  });
  addCall(noun, {
    name: "sync",
    summary: "bring over what contracts a peer's grants open to this server",
    method: syncPeer,
    fields: [which],
    show: ({ peer: row, offered, added, withdrawn, skipped }) => [
      ...describe(row!),
      `${offered} contracts are offered: ${added} new, ${withdrawn} withdrawn, ${skipped} skipped`,
    ],
  });
  addCall(noun, {
    name: "remove",
    summary: "end a peer for good: nothing crosses any more",
    method: removePeer,
    fields: [which],
    show: (response) => describe(response.peer!),
  });
  addCall(noun, {
    name: "rotate",
    summary: "make a new key of this server, or take a new one of a peer",
    example: "moltwire peer rotate --overlap 7d",
    method: rotatePeerKey,
    fields: [
      { name: "peerId", as: "--peer <peer>", help: "whose key it is (default: this server's own)" },
      { name: "publicKey", as: "--key <base64>", help: "the peer's new public key" },
      {
        name: "overlap",
        as: "--overlap <span>",
        help: "how long the former keys stay good (default: 1d)",
        read: duration,
      },
    ],
    show: ({ identity, peer: row }) => (identity ? describeSelf(identity) : describe(row!)),
  });
};

const columns: readonly Column<Peer>[] = [
  { title: "PEER", cell: ({ peerId }) => peerId },
  { title: "NAME", cell: ({ name }) => name },
  {
    title: "STATE",
    cell: ({ state }) => nameIn(PeerStateSchema, state),
    colour: ({ state }) => (state === PeerState.ACTIVE ? "green" : "yellow"),
  },
  { title: "AS", cell: ({ orgId }) => orgId },
  { title: "URL", cell: ({ baseUrl }) => baseUrl, cut: true },
  { title: "AGE", cell: ({ createTime }) => age(createTime), right: true },
];

const keyFact = ({ publicKey, activeTime, expireTime }: PeerKey): Fact => [
  "key",
  `${Buffer.from(publicKey).toString("base64")}  from ${at(activeTime)}${expireTime ? ` until ${at(expireTime)}` : ""}`,
];

const describeSelf = ({ audience, keys }: ServerIdentity): string[] =>
  renderFacts(paint("bold", "this server"), [["audience", audience], ...keys.map(keyFact)]);

const describe = (row: Peer): string[] =>
  renderFacts(`${paint("bold", row.peerId)}  ${nameIn(PeerStateSchema, row.state)}`, [
    ["name", row.name],
    ["url", row.baseUrl],
    ["audience", row.audience],
    ["organisation", row.orgId],
    ["agent", row.agentId],
    ["remote", row.remoteOrgId],
    ...row.keys.map(keyFact),
    ["added", at(row.createTime)],
  ]);
