/** Filters of a page: each is a word of its address. */
import { Select, Switch, TextInput } from "@mantine/core";
import { useDebouncedCallback } from "@mantine/hooks";
import { useEffect, useState } from "react";
import { useWord } from "./address.ts";
import { useAgents } from "./names.ts";

type Choice = { readonly value: string; readonly label: string };

/** One of a few. */
export function WordChoice({ word, label, choices }: { word: string; label: string; choices: readonly Choice[] }) {
  const [value, set] = useWord(word);
  return (
    <Select
      size="xs"
      aria-label={label}
      data={[...choices]}
      value={value}
      onChange={(next) => set(next ?? "")}
      allowDeselect={false}
    />
  );
}

/** Text, which is looked for once nothing more is typed. */
export function WordText({ word, label }: { word: string; label: string }) {
  const [value, set] = useWord(word);
  const [typed, type] = useState(value);
  const write = useDebouncedCallback(set, 250);
  useEffect(() => type(value), [value]);
  return (
    <TextInput
      size="xs"
      aria-label={label}
      placeholder={label}
      value={typed}
      onChange={({ currentTarget }) => {
        type(currentTarget.value);
        write(currentTarget.value);
      }}
    />
  );
}

/** Yes or not said. */
export function WordSwitch({ word, label }: { word: string; label: string }) {
  const [value, set] = useWord(word);
  return (
    <Switch
      size="xs"
      label={label}
      checked={value !== ""}
      onChange={({ currentTarget }) => set(currentTarget.checked ? "1" : "")}
    />
  );
}

/** One of the organisation's agents; without a choice the first, or none if `none` says how that is called. */
export function WordAgent({ word = "agent", none }: { word?: string; none?: string }) {
  const [value, set] = useWord(word);
  const agents = useAgents();
  const data = agents.map(({ agentId, name }) => ({ value: agentId, label: name }));
  return (
    <Select
      size="xs"
      aria-label="Agent"
      searchable
      data={none === undefined ? data : [{ value: "", label: none }, ...data]}
      value={value || (none === undefined ? (agents[0]?.agentId ?? null) : "")}
      onChange={(next) => set(next ?? "")}
      allowDeselect={false}
    />
  );
}
