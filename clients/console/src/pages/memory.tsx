import { createClient } from "@connectrpc/connect";
import { useQuery, useTransport } from "@connectrpc/connect-query";
import { Button, Drawer, Group, Stack } from "@mantine/core";
import { useState } from "react";
import { type EntryChange, type EntryOrder, EntrySchema } from "../../../../gen/moltwire/memory/v1/memory_pb.ts";
import { MemoryService } from "../../../../gen/moltwire/memory/v1/memory_service_pb.ts";
import { useFeed } from "../live/use-feed.ts";
import { Act } from "../parts/act.tsx";
import { useWord } from "../parts/address.ts";
import { useReadAgain } from "../parts/again.ts";
import { AsCommand, callOf, curlOf } from "../parts/command.tsx";
import { Failure } from "../parts/failure.tsx";
import { WordAgent, WordChoice, WordText } from "../parts/filters.tsx";
import { List } from "../parts/list.tsx";
import { Changes, changesKept, entryColumns, entryFacts, orders, ValueOf } from "../parts/memory.tsx";
import { useAgents } from "../parts/names.ts";
import { usePages } from "../parts/pages.ts";
import { Payload, useIsKept } from "../parts/reveal.tsx";
import { Empty, Facts, Head } from "../parts/show.tsx";
import { useOrg } from "../session.ts";

const { listEntries, getEntry, setEntry, deleteEntry } = MemoryService.method;

/** What an agent remembers, and how it changes. */
export function Memory() {
  const orgId = useOrg();
  const agents = useAgents();
  const [chosen] = useWord("agent");
  const [namespace] = useWord("namespace");
  const [prefix] = useWord("prefix");
  const [order] = useWord("order");
  const [opened, open] = useWord("key");
  const agentId = chosen || (agents[0]?.agentId ?? "");
  const request = { orgId, agentId, namespace, prefix, order: Number(order) as EntryOrder };
  const entries = usePages(listEntries, request, (page) => page.entries, { enabled: agentId !== "" });
  return (
    <>
      <Head
        title="Memory"
        about="What one agent keeps for itself. Values are read one at a time, when you ask for them."
        call={callOf(listEntries, request)}
        onRefresh={entries.refetch}
      >
        <WordAgent />
        <WordText word="namespace" label="Namespace: default" />
        <WordText word="prefix" label="Keys that begin so" />
        <WordChoice word="order" label="Order" choices={orders} />
      </Head>
      <List
        label="Entries"
        {...entries.list}
        schema={EntrySchema}
        columns={entryColumns}
        keyOf={({ key }) => key}
        onOpen={({ key }) => open(key)}
        empty={
          <Empty
            title="Nothing is remembered here"
            command={curlOf(
              callOf(setEntry, {
                agentId: agentId || "agt_…",
                write: {
                  ...(namespace && { namespace }),
                  key: `${prefix}favourite`,
                  value: { kind: { case: "json", value: { kind: { case: "stringValue", value: "blue" } } } },
                },
              }),
            )}
          >
            An agent keeps JSON or bytes under a key, for itself; 50 KB a value. To write one:
          </Empty>
        }
      />
      {agentId !== "" && (
        <Watch
          key={`${orgId} ${agentId} ${namespace} ${prefix}`}
          agentId={agentId}
          namespace={namespace}
          prefix={prefix}
        />
      )}
      <Drawer opened={opened !== ""} onClose={() => open("")} position="right" size="lg" title="Entry">
        {opened !== "" && <Details agentId={agentId} namespace={namespace} entryKey={opened} onGone={() => open("")} />}
      </Drawer>
    </>
  );
}

/** Follows the memory's log, and has the list read again when something comes. */
function Watch({ agentId, namespace, prefix }: { agentId: string; namespace: string; prefix: string }) {
  const orgId = useOrg();
  const transport = useTransport();
  const readAgain = useReadAgain();
  const [changes, setChanges] = useState<readonly EntryChange[]>([]);
  const [place] = useState<{ revision?: bigint }>({});
  const state = useFeed(`${agentId} ${namespace} ${prefix}`, {
    begin: (signal) =>
      createClient(MemoryService, transport).watchEntries(
        {
          ...{ orgId, agentId, namespace, prefix },
          ...(place.revision !== undefined && { afterRevision: place.revision }),
        },
        { signal },
      ),
    onMessage: ({ revision, event }) => {
      place.revision = revision;
      if (event.case !== "change") return;
      setChanges((before) => [event.value, ...before].slice(0, changesKept));
      return "news";
    },
    onGap: () => delete place.revision,
    onNews: () => void readAgain([listEntries, getEntry]),
  });
  return <Changes state={state} changes={changes} />;
}

type DetailsProps = {
  readonly agentId: string;
  readonly namespace: string;
  readonly entryKey: string;
  readonly onGone: () => void;
};

function Details({ agentId, namespace, entryKey, onGone }: DetailsProps) {
  const orgId = useOrg();
  const [isShown, show] = useState(false);
  const isKept = useIsKept();
  const request = { orgId, agentId, namespace, key: entryKey };
  // Lists tell all but the value; the value is read when it is wanted.
  const { data, error } = useQuery(listEntries, { orgId, agentId, namespace, prefix: entryKey, pageSize: 1 });
  const value = useQuery(getEntry, request, { enabled: isShown });
  const entry = data?.entries.find(({ key }) => key === entryKey);
  return (
    <Stack>
      {entry && <Facts facts={entryFacts(entry)} />}
      {(error ?? value.error) && <Failure error={error ?? value.error} />}
      {isKept && (
        <Payload subject={{ case: "entry", value: { agentId, namespace: request.namespace, key: entryKey } }}>
          {null}
        </Payload>
      )}
      {value.data && <ValueOf value={value.data.entry?.value} />}
      <Group>
        {!isShown && !isKept && (
          <Button variant="default" onClick={() => show(true)}>
            Show its value
          </Button>
        )}
        {entry && (
          <Act
            label="Delete"
            title="Delete this entry?"
            about="Whoever watches the memory is told. The log keeps that it was deleted, not what it was."
            tone="bad"
            method={deleteEntry}
            request={{ ...request, ifRevision: entry.revision }}
            again={[listEntries]}
            onDone={onGone}
          />
        )}
        <AsCommand call={callOf(getEntry, request)} />
      </Group>
    </Stack>
  );
}
