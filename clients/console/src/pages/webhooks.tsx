import { useInfiniteQuery, useMutation, useQuery } from "@connectrpc/connect-query";
import { Button, Drawer, Group, Stack, Table, Text, Title } from "@mantine/core";
import { useState } from "react";
import { type Delivery, DeliveryState } from "../../../../gen/moltwire/webhook/v1/delivery_pb.ts";
import { DisableReason, type Webhook, WebhookSchema } from "../../../../gen/moltwire/webhook/v1/webhook_pb.ts";
import { WebhookService } from "../../../../gen/moltwire/webhook/v1/webhook_service_pb.ts";
import { useRefresh } from "../live/use-live.ts";
import { useWord } from "../parts/address.ts";
import { useReadAgain } from "../parts/again.ts";
import { AsCommand, callOf } from "../parts/command.tsx";
import { Failure } from "../parts/failure.tsx";
import { type Column, List } from "../parts/list.tsx";
import { useAgentNames } from "../parts/names.ts";
import { Payload } from "../parts/reveal.tsx";
import { Empty, Facts, Head, Mono, State, type Tone } from "../parts/show.tsx";
import { agoText, enumText, timeText } from "../parts/text.ts";
import { useOrg } from "../session.ts";

const { listWebhooks, getWebhook, listDeliveries, getDelivery, replayDelivery, testWebhook } = WebhookService.method;

const stateOf = ({ disabled, failingSinceTime }: Webhook) => {
  if (disabled) return <State tone="off">disabled</State>;
  return failingSinceTime ? <State tone="bad">failing</State> : <State tone="good">enabled</State>;
};

const tones: Readonly<Record<number, Tone>> = {
  [DeliveryState.UNSPECIFIED]: "off",
  [DeliveryState.PENDING]: "wait",
  [DeliveryState.DELIVERED]: "good",
  [DeliveryState.FAILED]: "bad",
};

/** Where events are sent. */
export function Webhooks() {
  const orgId = useOrg();
  const nameOf = useAgentNames();
  const [opened, open] = useWord("webhook");
  const webhooks = useInfiniteQuery(
    listWebhooks,
    { orgId, pageSize: 50, pageToken: "" },
    { pageParamKey: "pageToken", getNextPageParam: ({ nextPageToken }) => nextPageToken || undefined },
  );
  useRefresh([listWebhooks, getWebhook, listDeliveries], ({ from }) => from === "events", 2_000);
  const columns: readonly Column<Webhook>[] = [
    { name: "State", show: stateOf },
    { name: "URL", show: ({ url }) => <div className="fit">{url}</div> },
    { name: "Events", wide: true, show: ({ eventTypes }) => <div className="fit">{eventTypes.join(", ")}</div> },
    { name: "Agent", wide: true, show: ({ agentId }) => nameOf(agentId) },
    { name: "Age", wide: true, right: true, show: ({ createTime }) => agoText(createTime) },
  ];
  return (
    <>
      <Head title="Webhooks" call={callOf(listWebhooks, { orgId })} onRefresh={() => void webhooks.refetch()} />
      <List
        label="Webhooks"
        schema={WebhookSchema}
        rows={webhooks.data?.pages.flatMap((page) => page.webhooks) ?? []}
        columns={columns}
        keyOf={({ webhookId }) => webhookId}
        onOpen={({ webhookId }) => open(webhookId)}
        isPending={webhooks.isPending}
        error={webhooks.error}
        more={webhooks.hasNextPage ? () => void webhooks.fetchNextPage() : undefined}
        isFetchingMore={webhooks.isFetchingNextPage}
        empty={
          <Empty
            title="No webhooks"
            command={`curl -sS ${window.location.origin}/moltwire.webhook.v1.WebhookService/CreateWebhook \\\n  -H "authorization: Bearer $MOLTWIRE_API_KEY" -H 'content-type: application/json' \\\n  -d '{"url":"https://example.com/hook","eventTypes":["task.*"]}'`}
          >
            A webhook is told of events, signed, and tried again until it has taken them. To make one:
          </Empty>
        }
      />
      <Drawer opened={opened !== ""} onClose={() => open("")} position="right" size="xl" title="Webhook">
        {opened !== "" && <Details webhookId={opened} />}
      </Drawer>
    </>
  );
}

/** One webhook, and what was sent to it. */
function Details({ webhookId }: { webhookId: string }) {
  const orgId = useOrg();
  const nameOf = useAgentNames();
  const readAgain = useReadAgain();
  const { data, error } = useQuery(getWebhook, { orgId, webhookId });
  const [sent, see] = useState("");
  const deliveries = useQuery(listDeliveries, { orgId, webhookId, pageSize: 50 });
  const onSuccess = () => readAgain([listDeliveries]);
  const replay = useMutation(replayDelivery, { onSuccess });
  const test = useMutation(testWebhook, { onSuccess });
  const webhook = data?.webhook;
  if (!webhook) return error ? <Failure error={error} /> : null;
  const lastOf = ({ attempts }: Delivery) => {
    const last = attempts.at(-1);
    return last ? `${last.statusCode || ""} ${last.error}`.trim() : "not yet";
  };
  return (
    <Stack>
      <Facts
        facts={[
          ["State", stateOf(webhook)],
          ["Why", webhook.disabled ? enumText(DisableReason, webhook.disableReason) : ""],
          ["URL", webhook.url],
          ["Id", <Mono key="id">{webhookId}</Mono>],
          ["About", webhook.description],
          ["Events", webhook.eventTypes.join(", ")],
          ["Agent", nameOf(webhook.agentId)],
          ["Failing since", webhook.failingSinceTime && timeText(webhook.failingSinceTime)],
        ]}
      />
      {(test.error ?? replay.error) && <Failure error={test.error ?? replay.error} />}
      <Group>
        <Button variant="default" onClick={() => test.mutate({ orgId, webhookId })} loading={test.isPending}>
          Send a test
        </Button>
        <AsCommand call={callOf(listDeliveries, { orgId, webhookId })} />
      </Group>
      <Title order={3} size="h5">
        Deliveries
      </Title>
      {deliveries.error && <Failure error={deliveries.error} />}
      {deliveries.data?.deliveries.length === 0 && <Text size="sm">Nothing was sent yet.</Text>}
      <Table.ScrollContainer minWidth={300}>
        <Table aria-label="Deliveries">
          <Table.Tbody>
            {deliveries.data?.deliveries.map((delivery) => (
              <Table.Tr key={delivery.eventId}>
                <Table.Td>
                  <State tone={tones[delivery.state] ?? "off"}>{enumText(DeliveryState, delivery.state)}</State>
                </Table.Td>
                <Table.Td>{delivery.eventType}</Table.Td>
                <Table.Td visibleFrom="sm">{lastOf(delivery)}</Table.Td>
                <Table.Td>{agoText(delivery.eventTime)}</Table.Td>
                <Table.Td style={{ whiteSpace: "nowrap" }}>
                  <Button
                    size="compact-xs"
                    variant="default"
                    mr={4}
                    aria-expanded={sent === delivery.eventId}
                    onClick={() => see(sent === delivery.eventId ? "" : delivery.eventId)}
                  >
                    Sent
                  </Button>
                  <Button
                    size="compact-xs"
                    variant="default"
                    onClick={() => replay.mutate({ orgId, webhookId, eventId: delivery.eventId })}
                  >
                    Replay
                  </Button>
                </Table.Td>
              </Table.Tr>
            ))}
          </Table.Tbody>
        </Table>
      </Table.ScrollContainer>
      {sent && <Sent key={sent} webhookId={webhookId} eventId={sent} />}
    </Stack>
  );
}

/** The body of a delivery, and what the endpoint answered to each attempt. */
function Sent({ webhookId, eventId }: { webhookId: string; eventId: string }) {
  const orgId = useOrg();
  const { data, error } = useQuery(getDelivery, { orgId, webhookId, eventId });
  if (!data) return error ? <Failure error={error} /> : null;
  const attempts = data.delivery?.attempts ?? [];
  return (
    <Stack gap="xs">
      <Title order={3} size="h5">
        Sent, and answered
      </Title>
      <Payload subject={{ case: "delivery", value: { webhookId, eventId } }}>
        <Code text={data.body} />
        {attempts.map(({ attempt, statusCode, error: why, responseBody }) => (
          <div key={attempt}>
            <Text size="sm">
              {attempt}: {statusCode || ""} {why}
            </Text>
            {responseBody && <Code text={responseBody} />}
          </div>
        ))}
      </Payload>
    </Stack>
  );
}

const Code = ({ text }: { text: string }) => (
  // biome-ignore lint/a11y/noNoninteractiveTabindex: what scrolls has to be reachable by keyboard
  <pre className="json" tabIndex={0}>
    {text}
  </pre>
);
