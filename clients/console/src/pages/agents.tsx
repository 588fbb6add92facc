import { useInfiniteQuery, useMutation, useQuery } from "@connectrpc/connect-query";
import { Button, Drawer, Group, Modal, Stack, Text, TextInput, Title } from "@mantine/core";
import { useDisclosure } from "@mantine/hooks";
import { type Agent, AgentSchema, CircuitState, TrustTier } from "../../../../gen/moltwire/bus/v1/agent_pb.ts";
import { AgentService } from "../../../../gen/moltwire/bus/v1/agent_service_pb.ts";
import { StatusService } from "../../../../gen/moltwire/ops/v1/status_service_pb.ts";
import { useRefresh } from "../live/use-live.ts";
import { useWord } from "../parts/address.ts";
import { useReadAgain } from "../parts/again.ts";
import { AsCommand, callOf } from "../parts/command.tsx";
import { Failure } from "../parts/failure.tsx";
import { type Column, List } from "../parts/list.tsx";
import { Empty, Facts, Head, Mono, Raw, State, type Tone } from "../parts/show.tsx";
import { agoText, countText, creditsText, enumText, timeText } from "../parts/text.ts";
import { useOrg } from "../session.ts";

const { listAgents, getAgent, updateAgent, deleteAgent } = AgentService.method;

const circuitTones: Readonly<Record<number, Tone>> = {
  [CircuitState.UNSPECIFIED]: "off",
  [CircuitState.CLOSED]: "good",
  [CircuitState.OPEN]: "bad",
  [CircuitState.HALF_OPEN]: "wait",
};

const endpointOf = ({ endpoint }: Agent): string => {
  const { kind } = endpoint ?? {};
  if (!kind?.case) return "none: it only calls";
  if (kind.case === "http" || kind.case === "grpc") return `${kind.case} ${kind.value.url}`;
  if (kind.case === "openai") return `openai ${kind.value.model} at ${kind.value.baseUrl}`;
  return kind.case === "custom" ? `custom ${kind.value.adapter}` : kind.case;
};

/** Who is on the bus. */
export function Agents() {
  const orgId = useOrg();
  const [capability, setCapability] = useWord("capability");
  const [opened, open] = useWord("agent");
  const agents = useInfiniteQuery(
    listAgents,
    { orgId, capability, pageSize: 50, pageToken: "" },
    { pageParamKey: "pageToken", getNextPageParam: ({ nextPageToken }) => nextPageToken || undefined },
  );
  const columns: readonly Column<Agent>[] = [
    { name: "Name", show: (agent) => agent.name },
    {
      name: "State",
      show: ({ disabled }) => <State tone={disabled ? "off" : "good"}>{disabled ? "disabled" : "enabled"}</State>,
    },
    { name: "Trust", wide: true, show: ({ trustTier }) => enumText(TrustTier, trustTier) },
    {
      name: "Capabilities",
      wide: true,
      show: ({ capabilities }) => <div className="fit">{capabilities.join(", ")}</div>,
    },
    { name: "Endpoint", wide: true, show: (agent) => <div className="fit">{endpointOf(agent)}</div> },
    { name: "Age", right: true, show: ({ createTime }) => agoText(createTime) },
  ];
  return (
    <>
      <Head
        title="Agents"
        cli={`npx moltwire agent list${capability && ` --capability ${capability}`}`}
        call={callOf(listAgents, { orgId, capability })}
        onRefresh={() => void agents.refetch()}
      >
        <TextInput
          size="xs"
          aria-label="Capability"
          placeholder="Capability, exactly"
          value={capability}
          onChange={(event) => setCapability(event.currentTarget.value)}
        />
      </Head>
      <List
        label="Agents"
        rows={agents.data?.pages.flatMap((page) => page.agents) ?? []}
        columns={columns}
        keyOf={({ agentId }) => agentId}
        onOpen={({ agentId }) => open(agentId)}
        isPending={agents.isPending}
        error={agents.error}
        more={agents.hasNextPage ? () => void agents.fetchNextPage() : undefined}
        isFetchingMore={agents.isFetchingNextPage}
        empty={
          <Empty title="No agents" command="npx moltwire agent register parrot --capability repeat --endpoint echo">
            An agent calls contracts, or does the work behind them. To register one that answers with its input:
          </Empty>
        }
      />
      <Drawer opened={opened !== ""} onClose={() => open("")} position="right" size="lg" title="Agent">
        {opened !== "" && <Details agentId={opened} onGone={() => open("")} />}
      </Drawer>
    </>
  );
}

/** One agent: how it stands, what it did, and what can be done about it. */
function Details({ agentId, onGone }: { agentId: string; onGone: () => void }) {
  const orgId = useOrg();
  const readAgain = useReadAgain();
  const [asking, ask] = useDisclosure(false);
  const { data, error } = useQuery(getAgent, { orgId, agentId });
  const stats = useQuery(StatusService.method.getStats, { orgId, agentId });
  const refresh = async () => {
    await readAgain([listAgents, getAgent]);
  };
  // Nothing is removed by it.
  const wish = { orgId, agentId, validateOnly: true };
  const preview = useQuery(deleteAgent, wish, { enabled: asking, gcTime: 0 });
  const going = preview.data;
  const update = useMutation(updateAgent, { onSuccess: refresh });
  const remove = useMutation(deleteAgent, {
    onSuccess: async () => {
      onGone();
      await refresh();
    },
  });
  useRefresh([getAgent, StatusService.method.getStats], (item) => item.agentId === agentId, 1_000);
  const agent = data?.agent;
  if (!agent) return error ? <Failure error={error} /> : null;
  const { circuit } = agent;
  const change = {
    orgId,
    agentId,
    change: { disabled: !agent.disabled },
    updateMask: { paths: ["disabled"] },
    ifRevision: agent.revision,
  };
  const did = stats.data;
  return (
    <Stack>
      <Title order={3} size="h4">
        {agent.name}
      </Title>
      {agent.description && <Text size="sm">{agent.description}</Text>}
      <Facts
        facts={[
          ["Id", <Mono key="id">{agentId}</Mono>],
          ["Trust", enumText(TrustTier, agent.trustTier)],
          ["Capabilities", agent.capabilities.join(", ")],
          ["Tools", agent.allowedTools.join(", ")],
          ["Endpoint", endpointOf(agent)],
          ["Namespace", agent.namespace],
          [
            "Circuit",
            circuit && (
              <State tone={circuitTones[circuit.state] ?? "off"}>
                {enumText(CircuitState, circuit.state)}
                {circuit.failureCount > 0 && `, ${circuit.failureCount} failures`}
                {circuit.retryTime && `, tried again ${timeText(circuit.retryTime)}`}
              </State>
            ),
          ],
          ["Registered", timeText(agent.createTime)],
          ["Last call", did?.lastSeenTime ? `${agoText(did.lastSeenTime)} ago` : "never"],
          ["Calls", did && countText(did.requests)],
          [
            "Tasks",
            did && `${countText(did.tasksReceived)} done for others, ${countText(did.tasksSubmitted)} asked for`,
          ],
          ["Jobs submitted", did && countText(did.jobsSubmitted)],
          ["Keys in memory", did && countText(did.memoryKeys + did.sharedMemoryKeys)],
          ["Reputation", did && `${did.reputation.toFixed(1)} by ${countText(did.collaborationsReceived)}`],
        ]}
      />
      {(update.error ?? remove.error) && <Failure error={update.error ?? remove.error} />}
      <Group>
        <Button variant="default" onClick={() => update.mutate(change)} loading={update.isPending}>
          {agent.disabled ? "Enable" : "Disable"}
        </Button>
        <Button color="red.9" onClick={ask.open}>
          Delete…
        </Button>
        <AsCommand
          cli={`npx moltwire agent update ${agentId} ${agent.disabled ? "--enable" : "--disable"}`}
          call={callOf(updateAgent, change)}
        />
      </Group>
      <Raw schema={AgentSchema} message={agent} />
      <Modal opened={asking} onClose={ask.close} title={`Delete ${agent.name}?`}>
        <Stack>
          <Text size="sm">With it go:</Text>
          {preview.error && <Failure error={preview.error} />}
          {going && (
            <Facts
              facts={[
                ["Keys", countText(going.revokedApiKeys)],
                [
                  "Memories",
                  `${countText(going.deletedMemories)}${did ? ` (entries: ${countText(did.memoryKeys + did.sharedMemoryKeys)})` : ""}`,
                ],
                ["Schedules", countText(going.deletedSchedules)],
                ["Messages in its inbox", countText(going.deletedMessages)],
                ["Webhooks", countText(going.deletedWebhooks)],
                ["Credits that go back", creditsText(going.returnedCreditsMicros)],
              ]}
            />
          )}
          <Text size="sm">Tasks and traces stay. This cannot be undone.</Text>
          <Group justify="flex-end">
            <AsCommand cli={`npx moltwire agent delete ${agentId}`} call={callOf(deleteAgent, { orgId, agentId })} />
            <Button variant="default" onClick={ask.close}>
              Keep it
            </Button>
            <Button
              color="red.9"
              loading={remove.isPending}
              onClick={() => {
                ask.close();
                remove.mutate({ orgId, agentId });
              }}
            >
              Delete
            </Button>
          </Group>
        </Stack>
      </Modal>
    </Stack>
  );
}
