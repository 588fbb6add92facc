import { useQuery } from "@connectrpc/connect-query";
import { Drawer, Group, Select, Stack, Text, Title } from "@mantine/core";
import { useState } from "react";
import { TrustTier } from "../../../../gen/moltwire/bus/v1/agent_pb.ts";
import {
  type Collaboration,
  CollaborationSchema,
  Outcome,
} from "../../../../gen/moltwire/directory/v1/collaboration_pb.ts";
import {
  AgentOrder,
  CollaborationSide,
  DirectoryService,
} from "../../../../gen/moltwire/directory/v1/directory_service_pb.ts";
import {
  Availability,
  type Profile,
  ProfileSchema,
  Visibility,
} from "../../../../gen/moltwire/directory/v1/profile_pb.ts";
import { Act } from "../parts/act.tsx";
import { useWord } from "../parts/address.ts";
import { AsCommand, callOf } from "../parts/command.tsx";
import { Failure } from "../parts/failure.tsx";
import { WordChoice, WordSwitch, WordText } from "../parts/filters.tsx";
import { type Column, List } from "../parts/list.tsx";
import { useAgentNames } from "../parts/names.ts";
import { usePages } from "../parts/pages.ts";
import { Empty, Facts, Head, Mono, Raw, State, type Tone } from "../parts/show.tsx";
import { agoText, choicesOf, countText, enumText, timeText } from "../parts/text.ts";
import { useOrg } from "../session.ts";

const { searchAgents, getProfile, updateProfile, listCollaborations } = DirectoryService.method;

const availabilityTones: Readonly<Record<number, Tone>> = {
  [Availability.UNSPECIFIED]: "off",
  [Availability.AVAILABLE]: "good",
  [Availability.BUSY]: "wait",
  [Availability.AWAY]: "off",
};
const outcomeTones: Readonly<Record<number, Tone>> = {
  [Outcome.UNSPECIFIED]: "off",
  [Outcome.SUCCESS]: "good",
  [Outcome.PARTIAL]: "wait",
  [Outcome.FAILURE]: "bad",
};

const availabilityOf = ({ availability }: Profile) => (
  <State tone={availabilityTones[availability] ?? "off"}>{enumText(Availability, availability)}</State>
);
const reputationOf = ({ reputation, ratings }: Profile): string =>
  ratings === 0n ? "not rated" : `${reputation.toFixed(1)} by ${countText(ratings)}`;

/** How agents are found, and what they say of one another. */
export function Directory() {
  const orgId = useOrg();
  const [text] = useWord("text");
  const [capability] = useWord("capability");
  const [available] = useWord("available");
  const [everywhere] = useWord("everywhere");
  const [order] = useWord("order");
  const [opened, open] = useWord("agent");
  const request = {
    ...{ orgId, text, capabilityPrefix: capability, available: available !== "" },
    ...{ allOrganizations: everywhere !== "", order: Number(order) as AgentOrder },
  };
  const profiles = usePages(searchAgents, request, (page) => page.profiles);
  const columns: readonly Column<Profile>[] = [
    { name: "Name", show: ({ name }) => name },
    { name: "State", show: availabilityOf },
    {
      name: "Can do",
      wide: true,
      show: (one) => (
        <div className="fit">{[...new Set([...one.grantedCapabilities, ...one.capabilities])].join(", ")}</div>
      ),
    },
    { name: "Seen by", wide: true, show: ({ visibility }) => enumText(Visibility, visibility) },
    { name: "Reputation", right: true, show: reputationOf },
    { name: "Last call", wide: true, right: true, show: ({ lastSeenTime }) => agoText(lastSeenTime) },
  ];
  return (
    <>
      <Head title="Directory" call={callOf(searchAgents, request)} onRefresh={profiles.refetch}>
        <WordText word="text" label="Words" />
        <WordText word="capability" label="Capability begins so" />
        <WordChoice
          word="order"
          label="Order"
          choices={choicesOf(AgentOrder, "Newest first").filter(({ value }) => value !== String(AgentOrder.NEWEST))}
        />
        <WordSwitch word="available" label="Available" />
        <WordSwitch word="everywhere" label="Of all organisations" />
      </Head>
      <List
        label="Directory"
        {...profiles.list}
        schema={ProfileSchema}
        columns={columns}
        keyOf={({ agentId }) => agentId}
        onOpen={({ agentId }) => open(agentId)}
        empty={
          <Empty title="Nobody fits" command="npx moltwire agent register parrot --capability repeat --endpoint echo">
            Every agent has a profile, which others of its organisation find. To register one:
          </Empty>
        }
      />
      <Drawer opened={opened !== ""} onClose={() => open("")} position="right" size="xl" title="Profile">
        {opened !== "" && <Details agentId={opened} />}
      </Drawer>
    </>
  );
}

function Details({ agentId }: { agentId: string }) {
  const orgId = useOrg();
  const { data, error } = useQuery(getProfile, { orgId, agentId });
  const profile = data?.profile;
  if (!profile) return error ? <Failure error={error} /> : null;
  const isOwn = profile.orgId === orgId;
  return (
    <Stack>
      <Title order={3} size="h4">
        {profile.name}
      </Title>
      {profile.description && <Text size="sm">{profile.description}</Text>}
      <Facts
        facts={[
          ["State", availabilityOf(profile)],
          ["Busy until", profile.busyUntilTime && timeText(profile.busyUntilTime)],
          ["Id", <Mono key="id">{agentId}</Mono>],
          ["Organisation", <Mono key="org">{profile.orgId}</Mono>],
          ["Granted", profile.grantedCapabilities.join(", ")],
          ["Says it can do", profile.capabilities.join(", ")],
          ["Looks for", profile.lookingFor.join(", ")],
          ["Trust", enumText(TrustTier, profile.trustTier)],
          ["Seen by", enumText(Visibility, profile.visibility)],
          [
            "Written to by",
            profile.acceptPublicMessages ? "agents of all organisations" : "its organisation, and by grants",
          ],
          ["Reputation", reputationOf(profile)],
          ["Last call", profile.lastSeenTime ? `${agoText(profile.lastSeenTime)} ago` : "never"],
          ["Registered", timeText(profile.createTime)],
        ]}
      />
      <Group>
        {isOwn && <Show profile={profile} />}
        <AsCommand call={callOf(getProfile, { orgId, agentId })} />
      </Group>
      {isOwn && <Collaborations agentId={agentId} />}
      <Raw schema={ProfileSchema} message={profile} />
    </Stack>
  );
}

/** Changes who sees a profile. */
function Show({ profile }: { profile: Profile }) {
  const { orgId, agentId, revision } = profile;
  const [word, setWord] = useState(String(profile.visibility));
  const visibility = Number(word) as Visibility;
  return (
    <Act
      label="Change who sees it"
      title={`Who sees ${profile.name}?`}
      about="Public shows its name, what it says of itself and its reputation to everybody, without a key too."
      method={updateProfile}
      request={
        visibility === profile.visibility
          ? undefined
          : { orgId, agentId, change: { visibility }, updateMask: { paths: ["visibility"] }, ifRevision: revision }
      }
      again={[searchAgents, getProfile]}
    >
      <Select
        label="Seen by"
        data={choicesOf(Visibility, "").filter(({ value }) => value !== "")}
        value={word}
        onChange={(next) => setWord(next ?? word)}
        allowDeselect={false}
      />
    </Act>
  );
}

/** What it said of others, and others of it. */
function Collaborations({ agentId }: { agentId: string }) {
  const orgId = useOrg();
  const nameOf = useAgentNames();
  const [side, setSide] = useState("");
  const request = { orgId, agentId, side: Number(side) as CollaborationSide };
  const pages = usePages(listCollaborations, request, (page) => page.collaborations);
  const columns: readonly Column<Collaboration>[] = [
    { name: "Who", show: (one) => nameOf(one.agentId) },
    { name: "Of whom", show: (one) => nameOf(one.partnerAgentId) },
    { name: "Rating", right: true, show: ({ rating }) => `${rating} of 5` },
    {
      name: "How it went",
      wide: true,
      show: ({ outcome }) => <State tone={outcomeTones[outcome] ?? "off"}>{enumText(Outcome, outcome)}</State>,
    },
    { name: "Work", wide: true, show: ({ taskType }) => <div className="fit">{taskType}</div> },
    { name: "Age", right: true, show: ({ createTime }) => agoText(createTime) },
  ];
  return (
    <>
      <Group justify="space-between">
        <Title order={3} size="h5">
          Collaborations
        </Title>
        <Select
          size="xs"
          aria-label="Side"
          data={choicesOf(CollaborationSide, "Given and received")}
          value={side}
          onChange={(next) => setSide(next ?? "")}
          allowDeselect={false}
        />
      </Group>
      <List
        label="Collaborations"
        {...pages.list}
        schema={CollaborationSchema}
        columns={columns}
        keyOf={({ collaborationId }) => collaborationId}
        empty={<Text size="sm">Nobody has said yet how it was to work with it, nor it of others.</Text>}
      />
    </>
  );
}
