import { createClient } from "@connectrpc/connect";
import { useQuery, useTransport } from "@connectrpc/connect-query";
import { Button, Drawer, Group, Stack, Text, Title } from "@mantine/core";
import { useState } from "react";
import {
  type Channel,
  type ChannelMember,
  ChannelMemberSchema,
  ChannelSchema,
  type ConsumerGroup,
  ConsumerGroupSchema,
  type DeadMessage,
  DeadMessageSchema,
} from "../../../../gen/moltwire/relay/v1/channel_pb.ts";
import { MessageOrder, RelayService, Start } from "../../../../gen/moltwire/relay/v1/relay_service_pb.ts";
import { useFeed } from "../live/use-feed.ts";
import { Act } from "../parts/act.tsx";
import { useWord } from "../parts/address.ts";
import { useReadAgain } from "../parts/again.ts";
import { AsCommand, callOf, curlOf } from "../parts/command.tsx";
import { Failure } from "../parts/failure.tsx";
import { WordText } from "../parts/filters.tsx";
import { type Column, List } from "../parts/list.tsx";
import { Messages } from "../parts/messages.tsx";
import { useAgentNames } from "../parts/names.ts";
import { usePages } from "../parts/pages.ts";
import { Empty, Facts, Head, Raw, State } from "../parts/show.tsx";
import { agoText, countText, durationText, timeText } from "../parts/text.ts";
import { useOrg } from "../session.ts";

const relay = RelayService.method;
const { listChannels, getChannel, listMessages, createChannel, deleteChannel } = relay;
const { listMembers, listConsumerGroups, listDeadMessages, redriveMessages } = relay;

/** Logs that agents write and read together. */
export function Channels() {
  const orgId = useOrg();
  const nameOf = useAgentNames();
  const [chosen, choose] = useWord("channel");
  const channels = usePages(listChannels, { orgId }, (page) => page.channels);
  const columns: readonly Column<Channel>[] = [
    { name: "Channel", show: ({ name }) => name },
    { name: "About", wide: true, show: ({ description }) => <div className="fit">{description}</div> },
    { name: "Messages", right: true, show: (one) => countText(one.lastSequence - one.oldestSequence + 1n) },
    { name: "Members", right: true, show: ({ members }) => countText(members) },
    { name: "Owner", wide: true, show: ({ ownerAgentId }) => nameOf(ownerAgentId) },
    { name: "Age", wide: true, right: true, show: ({ createTime }) => agoText(createTime) },
  ];
  return (
    <>
      <Head title="Channels" call={callOf(listChannels, { orgId })} onRefresh={channels.refetch} />
      <List
        label="Channels"
        {...channels.list}
        schema={ChannelSchema}
        columns={columns}
        keyOf={({ name }) => name}
        onOpen={({ name }) => choose(name === chosen ? "" : name)}
        empty={
          <Empty title="No channels" command={curlOf(callOf(createChannel, { name: "news", description: "for all" }))}>
            Agents write into a channel and read it together; it keeps its messages for 30 days. To make one:
          </Empty>
        }
      />
      {chosen !== "" && <OfChannel key={chosen} channel={chosen} onGone={() => choose("")} />}
    </>
  );
}

/** The messages of one channel, as they come. */
function OfChannel({ channel, onGone }: { channel: string; onGone: () => void }) {
  const orgId = useOrg();
  const transport = useTransport();
  const readAgain = useReadAgain();
  const [isOpen, open] = useWord("about");
  const [label] = useWord("label");
  const request = { orgId, channel, filter: { labels: label ? [label] : [] }, order: MessageOrder.NEWEST };
  const messages = usePages(listMessages, request, (page) => page.messages);
  const [place] = useState<{ sequence?: bigint }>({});
  const state = useFeed(`${orgId} ${channel}`, {
    begin: (signal) =>
      createClient(RelayService, transport).subscribe(
        {
          orgId,
          channel,
          ...(place.sequence === undefined ? { start: Start.NOW } : { afterSequence: place.sequence }),
        },
        { signal },
      ),
    onMessage: ({ sequence, event }) => {
      place.sequence = sequence;
      return event.case === "message" ? "news" : undefined;
    },
    onGap: () => delete place.sequence,
    onNews: () => void readAgain([listMessages, listChannels, getChannel]),
  });
  return (
    <>
      <Group justify="space-between" mt="xl" mb="xs">
        <Group gap="sm">
          <Title order={2} size="h4">
            Messages of {channel}
          </Title>
          <Text size="xs" data-watch={state}>
            <State tone={state === "live" ? "good" : "wait"}>{state}</State>
          </Text>
        </Group>
        <Group gap="xs">
          <WordText word="label" label="Label" />
          <Button variant="default" size="compact-sm" onClick={() => open("1")}>
            About the channel
          </Button>
          <AsCommand call={callOf(listMessages, request)} />
        </Group>
      </Group>
      <Messages
        label="Messages"
        ofChannel
        pages={messages}
        empty={<Text size="sm">None was written, or none has this label.</Text>}
      />
      <Drawer opened={isOpen !== ""} onClose={() => open("")} position="right" size="xl" title={`Channel ${channel}`}>
        {isOpen !== "" && (
          <Details
            channel={channel}
            onGone={() => {
              open("");
              onGone();
            }}
          />
        )}
      </Drawer>
    </>
  );
}

function Details({ channel, onGone }: { channel: string; onGone: () => void }) {
  const orgId = useOrg();
  const nameOf = useAgentNames();
  const request = { orgId, channel };
  const { data, error } = useQuery(getChannel, request);
  const members = usePages(listMembers, request, (page) => page.members);
  const groups = usePages(listConsumerGroups, request, (page) => page.groups);
  const dead = usePages(listDeadMessages, request, (page) => page.deadMessages);
  const one = data?.channel;
  if (!one) return error ? <Failure error={error} /> : null;
  const memberColumns: readonly Column<ChannelMember>[] = [
    { name: "Agent", show: ({ agentId }) => nameOf(agentId) },
    { name: "Joined", right: true, show: ({ joinTime }) => timeText(joinTime) },
  ];
  const groupColumns: readonly Column<ConsumerGroup>[] = [
    { name: "Group", show: ({ name }) => name },
    { name: "Up to", right: true, show: ({ position }) => `${position} of ${one.lastSequence}` },
    { name: "Handed out", right: true, show: ({ outstanding }) => countText(outstanding) },
    { name: "Time to answer", wide: true, right: true, show: ({ ackTimeout }) => durationText(ackTimeout) },
    { name: "Times", wide: true, right: true, show: ({ maxDeliveries }) => String(maxDeliveries) },
  ];
  const deadColumns: readonly Column<DeadMessage>[] = [
    { name: "Group", show: ({ group }) => group },
    { name: "Message", right: true, show: ({ message }) => String(message?.sequence) },
    { name: "Why", wide: true, show: ({ cause }) => <div className="fit">{cause}</div> },
    {
      name: "",
      right: true,
      show: ({ group, message }) => (
        <Act
          label="Redrive"
          size="compact-xs"
          title={`Hand message ${message?.sequence} out again?`}
          method={redriveMessages}
          request={{ ...request, group, sequences: message ? [message.sequence] : [] }}
          again={[listDeadMessages, listConsumerGroups]}
        />
      ),
    },
  ];
  return (
    <Stack>
      <Facts
        facts={[
          ["About", one.description],
          ["Read and written by", one.membersOnly ? "members only" : "every agent that policies permit"],
          ["Owner", nameOf(one.ownerAgentId)],
          ["Kept", `messages ${one.oldestSequence} to ${one.lastSequence}`],
          ["Made", timeText(one.createTime)],
        ]}
      />
      <Group>
        <Act
          label="Delete"
          title={`Delete ${channel}?`}
          about="With it go its messages, its members, its groups and their dead letters. This cannot be undone."
          tone="bad"
          method={deleteChannel}
          request={request}
          again={[listChannels]}
          onDone={onGone}
        />
        <AsCommand call={callOf(getChannel, request)} />
      </Group>
      <Title order={3} size="h5">
        Members
      </Title>
      <List
        label={`Members of ${channel}`}
        {...members.list}
        schema={ChannelMemberSchema}
        columns={memberColumns}
        keyOf={({ agentId }) => agentId}
        empty={<Text size="sm">Nobody has joined.</Text>}
      />
      <Title order={3} size="h5">
        Groups of readers
      </Title>
      <List
        label={`Groups of ${channel}`}
        {...groups.list}
        schema={ConsumerGroupSchema}
        columns={groupColumns}
        keyOf={({ name }) => name}
        empty={<Text size="sm">Nobody shares its messages with others.</Text>}
      />
      <Title order={3} size="h5">
        Dead letters
      </Title>
      <List
        label={`Dead letters of ${channel}`}
        {...dead.list}
        schema={DeadMessageSchema}
        columns={deadColumns}
        keyOf={({ group, message }) => `${group} ${message?.sequence}`}
        empty={<Text size="sm">Every message that was handed out was dealt with, or still is.</Text>}
      />
      <Raw schema={ChannelSchema} message={one} />
    </Stack>
  );
}
