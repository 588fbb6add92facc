/** What agents' memories and shared ones show in the same way. */
import { type JsonValue, toJson } from "@bufbuild/protobuf";
import { timestampMs, ValueSchema } from "@bufbuild/protobuf/wkt";
import { Group, Stack, Text, Title } from "@mantine/core";
import {
  ChangeKind,
  type Entry,
  type EntryChange,
  EntryOrder,
  type Value,
} from "../../../../gen/moltwire/memory/v1/memory_pb.ts";
import type { LiveState } from "../live/item.ts";
import type { Column } from "./list.tsx";
import { Facts, Json, Mono, State, type Tone } from "./show.tsx";
import { agoText, bytesText, clockText, enumText, timeText } from "./text.ts";

/** How many changes a page shows at most. */
export const changesKept = 100;

export const orders = [
  { value: "", label: "By key" },
  { value: String(EntryOrder.UPDATE_TIME), label: "Last written first" },
];

export const entryColumns: readonly Column<Entry>[] = [
  { name: "Key", show: ({ key }) => <div className="fit mono">{key}</div> },
  { name: "Bytes", right: true, show: ({ sizeBytes }) => bytesText(sizeBytes) },
  { name: "Revision", wide: true, right: true, show: ({ revision }) => String(revision) },
  { name: "Tags", wide: true, show: ({ tags }) => <div className="fit">{tags.join(", ")}</div> },
  { name: "Expires", wide: true, right: true, show: ({ expireTime }) => (expireTime ? timeText(expireTime) : "never") },
  { name: "Written", right: true, show: ({ updateTime }) => agoText(updateTime) },
];

export const entryFacts = (entry: Entry) =>
  [
    ["Namespace", entry.namespace],
    ["Key", <Mono key="key">{entry.key}</Mono>],
    ["About", entry.description],
    ["Tags", entry.tags.join(", ")],
    ["Revision", `${entry.revision}, created by ${entry.createRevision}`],
    ["Bytes", bytesText(entry.sizeBytes)],
    ["Created", timeText(entry.createTime)],
    ["Written", timeText(entry.updateTime)],
    ["Expires", entry.expireTime ? timeText(entry.expireTime) : "never"],
  ] as const;

/** A value: JSON as it is, of bytes only how many they are. */
export function ValueOf({ value }: { value: Value | undefined }) {
  if (value?.kind.case === "json") return <Json value={toJson(ValueSchema, value.kind.value) as JsonValue} />;
  return (
    <Facts
      facts={[
        ["Bytes", bytesText(value?.kind.value?.length ?? 0)],
        ["Type", value?.contentType || "not told"],
      ]}
    />
  );
}

const tones: Readonly<Record<number, Tone>> = {
  [ChangeKind.UNSPECIFIED]: "off",
  [ChangeKind.SET]: "good",
  [ChangeKind.DELETED]: "bad",
  [ChangeKind.EXPIRED]: "wait",
};

/** What changed while one looked, newest first. */
export const Changes = ({ state, changes }: { state: LiveState; changes: readonly EntryChange[] }) => (
  <Stack gap="xs" mt="xl">
    <Group gap="sm">
      <Title order={2} size="h4">
        Changes
      </Title>
      <Text size="xs" data-watch={state}>
        <State tone={state === "live" ? "good" : "wait"}>{state}</State>
      </Text>
    </Group>
    {changes.length === 0 && (
      <Text size="sm" c="dimmed">
        Each write, deletion and expiry appears here as it happens.
      </Text>
    )}
    <ul className="feed" aria-label="Changes, newest first">
      {changes.map(({ kind, entry, revision, time }) => (
        <li key={String(revision)}>
          <span className="mono dimmed">{time && clockText(timestampMs(time))}</span>
          <div>
            <State tone={tones[kind] ?? "off"}>{enumText(ChangeKind, kind)}</State>{" "}
            <span className="dimmed">
              {entry?.namespace} · revision {String(revision)}
            </span>
            <div className="mono">{entry?.key}</div>
          </div>
        </li>
      ))}
    </ul>
  </Stack>
);
