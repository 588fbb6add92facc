import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { NumberInput, Stack, Text } from "@mantine/core";
import { useState } from "react";
import { TrustTier } from "../../../../gen/moltwire/bus/v1/agent_pb.ts";
import {
  DirectoryService,
  type Invite,
  InviteSchema,
} from "../../../../gen/moltwire/directory/v1/directory_service_pb.ts";
import { Act } from "../parts/act.tsx";
import { Command, callOf, curlOf } from "../parts/command.tsx";
import { type Column, List } from "../parts/list.tsx";
import { usePages } from "../parts/pages.ts";
import { Empty, Head, Mono } from "../parts/show.tsx";
import { agoText, enumText, shortId, timeText } from "../parts/text.ts";
import { useOrg } from "../session.ts";

const { listInvites, createInvite, revokeInvite } = DirectoryService.method;
const dayMs = 86_400_000;

/** By what somebody who has no key registers an agent into the organisation. */
export function Invites() {
  const orgId = useOrg();
  const [secret, setSecret] = useState("");
  const [uses, setUses] = useState(1);
  const [days, setDays] = useState(7);
  const invites = usePages(listInvites, { orgId }, (page) => page.invites);
  const columns: readonly Column<Invite>[] = [
    { name: "Invite", show: ({ inviteId }) => <Mono>{shortId(inviteId)}</Mono> },
    { name: "Used", right: true, show: (one) => `${one.uses} of ${one.maxUses}` },
    { name: "Trust", wide: true, show: ({ trustTier }) => enumText(TrustTier, trustTier) },
    { name: "Until", wide: true, right: true, show: ({ expireTime }) => timeText(expireTime) },
    { name: "Age", wide: true, right: true, show: ({ createTime }) => agoText(createTime) },
    {
      name: "",
      right: true,
      show: ({ inviteId }) => (
        <Act
          label="Revoke"
          size="compact-xs"
          title="Revoke this invite?"
          about="Nobody registers with it any more. Who has, stays."
          tone="bad"
          method={revokeInvite}
          request={{ orgId, inviteId }}
          again={[listInvites]}
        />
      ),
    },
  ];
  return (
    <>
      <Head
        title="Invites"
        about="With an invite somebody who has no key registers an agent into this organisation."
        call={callOf(listInvites, { orgId })}
        onRefresh={invites.refetch}
      >
        <Act
          label="New invite"
          size="compact-sm"
          tone="main"
          title="New invite"
          method={createInvite}
          request={{ orgId, maxUses: uses, ttl: durationFromMs(days * dayMs) }}
          again={[listInvites]}
          onDone={(answer) => setSecret(answer.secret)}
        >
          <NumberInput
            label="Agents"
            value={uses}
            onChange={(next) => setUses(Number(next) || 1)}
            min={1}
            max={10_000}
          />
          <NumberInput label="Days" value={days} onChange={(next) => setDays(Number(next) || 1)} min={1} max={365} />
        </Act>
      </Head>
      {secret !== "" && (
        <Stack gap="xs" mb="md">
          <Text size="sm" role="status">
            This is the invite. It is shown this once:
          </Text>
          <Command text={secret} />
        </Stack>
      )}
      <List
        label="Invites"
        {...invites.list}
        schema={InviteSchema}
        columns={columns}
        keyOf={({ inviteId }) => inviteId}
        empty={
          <Empty title="No invites" command={curlOf(callOf(createInvite, { maxUses: 1 }))}>
            To make one for one agent, good for seven days:
          </Empty>
        }
      />
    </>
  );
}
