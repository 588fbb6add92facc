import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { useMutation } from "@connectrpc/connect-query";
import { Button, Drawer, Group, Stack, Text, TextInput, Title } from "@mantine/core";
import { useState } from "react";
import {
  type Peer,
  type PeerKey,
  PeerKeySchema,
  PeerSchema,
  PeerState,
} from "../../../../gen/moltwire/federation/v1/peer_pb.ts";
import { PeerService } from "../../../../gen/moltwire/federation/v1/peer_service_pb.ts";
import { Act } from "../parts/act.tsx";
import { useWord } from "../parts/address.ts";
import { AsCommand, Command, callOf } from "../parts/command.tsx";
import { Failure } from "../parts/failure.tsx";
import { WordSwitch } from "../parts/filters.tsx";
import { type Column, List } from "../parts/list.tsx";
import { usePages } from "../parts/pages.ts";
import { Empty, Facts, Head, Mono, Raw, State } from "../parts/show.tsx";
import { agoText, enumText, shortId, timeText } from "../parts/text.ts";

const { listPeers, getIdentity, addPeer, syncPeer, removePeer, rotatePeerKey } = PeerService.method;
const dayMs = 86_400_000;

const stateOf = ({ state }: Peer) => (
  <State tone={state === PeerState.ACTIVE ? "good" : "off"}>{enumText(PeerState, state)}</State>
);

/** Bytes as the command line and other consoles take them. */
const base64 = (bytes: Uint8Array): string => btoa(String.fromCharCode(...bytes));

function bytesOf(text: string): Uint8Array | undefined {
  try {
    const bytes = Uint8Array.from(atob(text.trim()), (one) => one.charCodeAt(0));
    return bytes.length === 32 ? bytes : undefined;
  } catch {
    return undefined;
  }
}

/** Other servers that this one federates with; for the operator. */
export function Peers() {
  const [opened, open] = useWord("peer");
  const [removed] = useWord("removed");
  const request = { includeRemoved: removed !== "" };
  const peers = usePages(listPeers, request, (page) => page.peers);
  const columns: readonly Column<Peer>[] = [
    { name: "State", show: stateOf },
    { name: "Name", show: ({ name }) => name },
    { name: "Server", show: ({ baseUrl }) => <div className="fit">{baseUrl}</div> },
    { name: "Audience", wide: true, show: ({ audience }) => <div className="fit">{audience}</div> },
    { name: "Organisation", wide: true, show: ({ orgId }) => <Mono>{shortId(orgId)}</Mono> },
    { name: "Age", wide: true, right: true, show: ({ createTime }) => agoText(createTime) },
  ];
  return (
    <>
      <Head
        title="Peers"
        about="Each peer is an organisation on this server: grants to and by it say what crosses."
        cli="npx moltwire peer list"
        call={callOf(listPeers, request)}
        onRefresh={peers.refetch}
      >
        <AddPeer />
        <Identity />
        <WordSwitch word="removed" label="Those that are removed" />
      </Head>
      <List
        label="Peers"
        {...peers.list}
        schema={PeerSchema}
        columns={columns}
        keyOf={({ peerId }) => peerId}
        onOpen={({ peerId }) => open(peerId)}
        empty={
          <Empty title="No peers" command="npx moltwire peer add lab https://lab.example --audience … --key …">
            Two servers federate when each has added the other, by what peer identity shows there. To add one:
          </Empty>
        }
      />
      <Drawer opened={opened !== ""} onClose={() => open("")} position="right" size="lg" title="Peer">
        {opened !== "" && <Details peer={peers.list.rows.find(({ peerId }) => peerId === opened)} />}
      </Drawer>
    </>
  );
}

const keyColumns: readonly Column<PeerKey>[] = [
  { name: "Key", show: ({ publicKey }) => <div className="mono any">{base64(publicKey)}</div> },
  { name: "From", wide: true, right: true, show: ({ activeTime }) => timeText(activeTime) },
  { name: "Until", right: true, show: ({ expireTime }) => (expireTime ? timeText(expireTime) : "no end") },
];

function Details({ peer }: { peer: Peer | undefined }) {
  if (!peer) return <Text size="sm">It is not among those that are shown.</Text>;
  const { peerId, name } = peer;
  const isActive = peer.state === PeerState.ACTIVE;
  return (
    <Stack>
      <Facts
        facts={[
          ["State", stateOf(peer)],
          ["Name", name],
          ["Id", <Mono key="id">{peerId}</Mono>],
          ["Server", peer.baseUrl],
          ["Audience", peer.audience],
          ["Organisation here", <Mono key="org">{peer.orgId}</Mono>],
          [
            "Organisation there",
            peer.remoteOrgId ? <Mono key="remote">{peer.remoteOrgId}</Mono> : "none: it only asks",
          ],
          ["Added", timeText(peer.createTime)],
        ]}
      />
      <Group>
        {isActive && peer.remoteOrgId && <Sync peerId={peerId} name={name} />}
        {isActive && (
          <Act
            label="Remove"
            tone="bad"
            title={`Remove ${name}?`}
            about="Nothing crosses any more, in either direction, from the next message on. Its organisation stays."
            method={removePeer}
            request={{ peerId }}
            cli={`npx moltwire peer remove ${peerId}`}
            again={[listPeers]}
          />
        )}
        <AsCommand cli="npx moltwire peer list" call={callOf(listPeers, {})} />
      </Group>
      <Title order={3} size="h5">
        Its keys
      </Title>
      <List
        label={`Keys of ${name}`}
        rows={peer.keys}
        schema={PeerKeySchema}
        columns={keyColumns}
        keyOf={({ keyId }) => keyId}
        isPending={false}
        error={undefined}
        empty={<Text size="sm">None: it was removed.</Text>}
      />
      <Raw schema={PeerSchema} message={peer} />
    </Stack>
  );
}

/** Brings over what the peer offers, and tells what that was. */
function Sync({ peerId, name }: { peerId: string; name: string }) {
  const [told, tell] = useState("");
  return (
    <>
      <Act
        label="Bring contracts over"
        title={`Ask ${name} what it offers?`}
        about="What its grants open to this server becomes contracts of its organisation here; what is open no more is deprecated."
        method={syncPeer}
        request={{ peerId }}
        cli={`npx moltwire peer sync ${peerId}`}
        again={[listPeers]}
        onDone={(one) =>
          tell(`${one.offered} offered: ${one.added} new, ${one.withdrawn} withdrawn, ${one.skipped} not taken.`)
        }
      />
      {told && (
        <Text size="sm" role="status">
          {told}
        </Text>
      )}
    </>
  );
}

/** What the operator of another server needs. The first time it is asked for it makes the server's key, so it is not read unasked. */
function Identity() {
  const [opened, open] = useState(false);
  const identity = useMutation(getIdentity);
  const { audience, keys = [] } = identity.data?.identity ?? {};
  return (
    <>
      <Button
        variant="default"
        size="compact-sm"
        onClick={() => {
          open(true);
          identity.mutate({});
        }}
      >
        This server
      </Button>
      <Drawer opened={opened} onClose={() => open(false)} position="right" size="lg" title="This server as a peer">
        <Stack>
          {identity.error && <Failure error={identity.error} />}
          <Text size="sm">The operator of another server adds this one by its audience and its newest key:</Text>
          {audience && <Command text={audience} />}
          {keys.map(({ keyId, publicKey }) => (
            <Command key={keyId} text={base64(publicKey)} />
          ))}
          <Group>
            <Act
              label="New key"
              title="Make a new key of this server?"
              about="The former key goes on signing for a day, in which the operators of the peers take the new one."
              method={rotatePeerKey}
              request={{ overlap: durationFromMs(dayMs) }}
              cli="npx moltwire peer rotate"
              again={[]}
              onDone={() => identity.mutate({})}
            />
            <AsCommand cli="npx moltwire peer identity" call={callOf(getIdentity, {})} />
          </Group>
        </Stack>
      </Drawer>
    </>
  );
}

function AddPeer() {
  const [name, setName] = useState("");
  const [baseUrl, setBaseUrl] = useState("");
  const [audience, setAudience] = useState("");
  const [key, setKey] = useState("");
  const [remoteOrgId, setRemoteOrgId] = useState("");
  const publicKey = bytesOf(key);
  const isWhole = name !== "" && baseUrl !== "" && audience !== "" && publicKey !== undefined;
  return (
    <Act
      label="Add peer"
      size="compact-sm"
      tone="main"
      title="Add a peer"
      about="What it calls itself and its key are what its operator sees there under This server."
      method={addPeer}
      request={
        isWhole ? { name, baseUrl, audience, publicKeys: [publicKey], remoteOrgId: remoteOrgId.trim() } : undefined
      }
      again={[listPeers]}
    >
      <TextInput
        label="Name"
        description="Small letters, digits and -"
        value={name}
        onChange={({ currentTarget }) => setName(currentTarget.value)}
        maxLength={63}
      />
      <TextInput
        label="Server"
        placeholder="https://lab.example"
        value={baseUrl}
        onChange={({ currentTarget }) => setBaseUrl(currentTarget.value)}
        maxLength={2048}
      />
      <TextInput
        label="Audience"
        value={audience}
        onChange={({ currentTarget }) => setAudience(currentTarget.value)}
        maxLength={256}
      />
      <TextInput
        label="Public key"
        description="32 bytes in base64"
        value={key}
        error={key !== "" && publicKey === undefined ? "not 32 bytes in base64" : undefined}
        onChange={({ currentTarget }) => setKey(currentTarget.value)}
      />
      <TextInput
        label="Organisation there"
        description="Whose contracts it offers here; empty: none"
        value={remoteOrgId}
        onChange={({ currentTarget }) => setRemoteOrgId(currentTarget.value)}
        maxLength={64}
      />
    </Act>
  );
}
