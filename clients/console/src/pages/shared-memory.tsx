import { createClient } from "@connectrpc/connect";
import { useQuery, useTransport } from "@connectrpc/connect-query";
import { Button, Drawer, Group, Stack, Title } from "@mantine/core";
import { useState } from "react";
import type { EntryChange, EntryOrder } from "../../../../gen/moltwire/memory/v1/memory_pb.ts";
import {
  type SharedEntry,
  SharedEntrySchema,
  SharedMemoryService,
  type SharedNamespace,
  SharedNamespaceSchema,
} from "../../../../gen/moltwire/memory/v1/shared_memory_service_pb.ts";
import { useFeed } from "../live/use-feed.ts";
import { Act } from "../parts/act.tsx";
import { useWord } from "../parts/address.ts";
import { useReadAgain } from "../parts/again.ts";
import { AsCommand, callOf, curlOf } from "../parts/command.tsx";
import { Failure } from "../parts/failure.tsx";
import { WordAgent, WordChoice, WordText } from "../parts/filters.tsx";
import { type Column, List } from "../parts/list.tsx";
import { Changes, changesKept, entryColumns, entryFacts, orders, ValueOf } from "../parts/memory.tsx";
import { useAgentNames } from "../parts/names.ts";
import { usePages } from "../parts/pages.ts";
import { Payload, useIsKept } from "../parts/reveal.tsx";
import { Empty, Facts, Head, State } from "../parts/show.tsx";
import { agoText, countText } from "../parts/text.ts";
import { useOrg } from "../session.ts";

const { listSharedNamespaces, listSharedEntries, getSharedEntry, publishSharedEntry, deleteSharedEntry } =
  SharedMemoryService.method;

const visibilityOf = (isPublic: boolean) => (
  <State tone={isPublic ? "wait" : "off"}>{isPublic ? "everybody" : "organisation"}</State>
);

const sharedColumns: readonly Column<SharedEntry>[] = [
  ...entryColumns.slice(0, 2).map(of),
  { name: "For", show: (one) => visibilityOf(one.public) },
  ...entryColumns.slice(2).map(of),
];

/** A column of an entry for one that is shared. */
function of({ show, ...column }: (typeof entryColumns)[number]): Column<SharedEntry> {
  return { ...column, show: ({ entry }) => entry && show(entry) };
}

/** What agents share: the namespaces, the entries of one, and how they change. */
export function SharedMemory() {
  const orgId = useOrg();
  const nameOf = useAgentNames();
  const [ownerAgentId] = useWord("owner");
  const [namespace, choose] = useWord("namespace");
  const request = { orgId, ownerAgentId };
  const namespaces = usePages(listSharedNamespaces, request, (page) => page.namespaces);
  const columns: readonly Column<SharedNamespace>[] = [
    { name: "Namespace", show: (one) => one.namespace },
    { name: "Owner", show: (one) => nameOf(one.ownerAgentId) },
    { name: "Entries", right: true, show: ({ entries }) => countText(entries) },
    { name: "Revision", wide: true, right: true, show: ({ revision }) => String(revision) },
    { name: "Changed", wide: true, right: true, show: ({ updateTime }) => agoText(updateTime) },
  ];
  return (
    <>
      <Head
        title="Shared memory"
        about="One agent writes a namespace, and the others read it."
        call={callOf(listSharedNamespaces, request)}
        onRefresh={namespaces.refetch}
      >
        <WordAgent word="owner" none="Of any agent" />
      </Head>
      <List
        label="Shared namespaces"
        {...namespaces.list}
        schema={SharedNamespaceSchema}
        columns={columns}
        keyOf={(one) => one.namespace}
        onOpen={(one) => choose(one.namespace === namespace ? "" : one.namespace)}
        empty={
          <Empty
            title="Nothing is shared"
            command={curlOf(
              callOf(publishSharedEntry, {
                agentId: ownerAgentId || "agt_…",
                write: {
                  namespace: "weather",
                  key: "today",
                  value: { kind: { case: "json", value: { kind: { case: "stringValue", value: "rain" } } } },
                },
              }),
            )}
          >
            The first entry makes a namespace, and the agent that writes it its owner. To publish one:
          </Empty>
        }
      />
      {namespace !== "" && <Entries key={namespace} namespace={namespace} />}
    </>
  );
}

function Entries({ namespace }: { namespace: string }) {
  const orgId = useOrg();
  const [prefix] = useWord("prefix");
  const [order] = useWord("order");
  const [opened, open] = useWord("key");
  const request = { orgId, namespace, prefix, order: Number(order) as EntryOrder };
  const entries = usePages(listSharedEntries, request, (page) => page.sharedEntries);
  return (
    <>
      <Group justify="space-between" mt="xl" mb="xs">
        <Title order={2} size="h4">
          Entries of {namespace}
        </Title>
        <Group gap="xs">
          <WordText word="prefix" label="Keys that begin so" />
          <WordChoice word="order" label="Order" choices={orders} />
          <AsCommand call={callOf(listSharedEntries, request)} />
        </Group>
      </Group>
      <List
        label="Shared entries"
        {...entries.list}
        schema={SharedEntrySchema}
        columns={sharedColumns}
        keyOf={({ entry }) => entry?.key ?? ""}
        onOpen={({ entry }) => open(entry?.key ?? "")}
        empty={<Empty title="None">No key of this namespace begins so.</Empty>}
      />
      <Watch key={`${orgId} ${prefix}`} namespace={namespace} prefix={prefix} />
      <Drawer opened={opened !== ""} onClose={() => open("")} position="right" size="lg" title="Shared entry">
        {opened !== "" && <Details namespace={namespace} entryKey={opened} onGone={() => open("")} />}
      </Drawer>
    </>
  );
}

/** Follows the namespace's log, and has the lists read again when something comes. */
function Watch({ namespace, prefix }: { namespace: string; prefix: string }) {
  const orgId = useOrg();
  const transport = useTransport();
  const readAgain = useReadAgain();
  const [changes, setChanges] = useState<readonly EntryChange[]>([]);
  const [place] = useState({ afterCursor: "" });
  const state = useFeed(`${namespace} ${prefix}`, {
    begin: (signal) =>
      createClient(SharedMemoryService, transport).watchSharedEntries(
        { orgId, namespace, prefix, ...place },
        { signal },
      ),
    onMessage: ({ cursor, event }) => {
      place.afterCursor = cursor;
      const change = event.case === "change" ? event.value.change : undefined;
      if (!change) return;
      setChanges((before) => [change, ...before].slice(0, changesKept));
      return "news";
    },
    onGap: () => {
      place.afterCursor = "";
    },
    onNews: () => void readAgain([listSharedNamespaces, listSharedEntries, getSharedEntry]),
  });
  return <Changes state={state} changes={changes} />;
}

type DetailsProps = { readonly namespace: string; readonly entryKey: string; readonly onGone: () => void };

function Details({ namespace, entryKey, onGone }: DetailsProps) {
  const orgId = useOrg();
  const nameOf = useAgentNames();
  const [isShown, show] = useState(false);
  const isKept = useIsKept();
  const request = { orgId, namespace, key: entryKey };
  // Lists tell all but the value; the value is read when it is wanted.
  const { data, error } = useQuery(listSharedEntries, { orgId, namespace, prefix: entryKey, pageSize: 1 });
  const value = useQuery(getSharedEntry, request, { enabled: isShown });
  const shared = data?.sharedEntries.find(({ entry }) => entry?.key === entryKey);
  return (
    <Stack>
      {shared?.entry && (
        <Facts
          facts={[
            ...entryFacts(shared.entry),
            ["Owner", nameOf(shared.ownerAgentId)],
            ["Read by", visibilityOf(shared.public)],
          ]}
        />
      )}
      {(error ?? value.error) && <Failure error={error ?? value.error} />}
      {isKept && (
        <Payload subject={{ case: "entry", value: { agentId: "", namespace, key: entryKey } }}>{null}</Payload>
      )}
      {value.data && <ValueOf value={value.data.sharedEntry?.entry?.value} />}
      <Group>
        {!isShown && !isKept && (
          <Button variant="default" onClick={() => show(true)}>
            Show its value
          </Button>
        )}
        {shared?.entry && (
          <Act
            label="Delete"
            title="Delete this entry?"
            about="Nobody who shares the namespace finds it any more, and whoever watches it is told."
            tone="bad"
            method={deleteSharedEntry}
            request={{ ...request, agentId: shared.ownerAgentId, ifRevision: shared.entry.revision }}
            again={[listSharedNamespaces, listSharedEntries]}
            onDone={onGone}
          />
        )}
        <AsCommand call={callOf(getSharedEntry, request)} />
      </Group>
    </Stack>
  );
}
