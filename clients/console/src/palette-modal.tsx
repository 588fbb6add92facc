import { Modal, ScrollArea, Stack, Text, TextInput, UnstyledButton } from "@mantine/core";
import { useNavigate } from "@tanstack/react-router";
import { type KeyboardEvent, useState } from "react";
import { pages } from "./router.tsx";

type Entry = { readonly title: string; readonly hint: string; readonly to: string };

/** Where one can go from what was typed: pages by name, things by their id. */
function entriesFor(typed: string): readonly Entry[] {
  const words = typed.trim().toLowerCase();
  const found: Entry[] = pages
    .filter(({ title }) => title.toLowerCase().includes(words))
    .map(({ title, path }) => ({ title, hint: "page", to: path }));
  if (/^[0-9a-f]{32}$/.test(words)) found.unshift({ title: `Trace ${words}`, hint: "trace", to: `/traces/${words}` });
  if (/^agt_/.test(words)) found.unshift({ title: `Agent ${words}`, hint: "agent", to: `/agents?agent=${words}` });
  if (/^apr_/.test(words))
    found.unshift({ title: `Approval ${words}`, hint: "approval", to: `/approvals?approval=${words}` });
  return found;
}

/** Takes the name of a page or an id. A file of its own, so that it is loaded when it is first opened. */
export default function PaletteModal({ onClose: close }: { onClose: () => void }) {
  const [typed, setTyped] = useState("");
  const [at, setAt] = useState(0);
  const navigate = useNavigate();
  const entries = entriesFor(typed);
  const go = (entry: Entry | undefined) => {
    if (!entry) return;
    close();
    setTyped("");
    const [to, search] = entry.to.split("?");
    void navigate({
      to: to!,
      search: ((before: object) => ({
        ...keepOrg(before),
        ...Object.fromEntries(new URLSearchParams(search)),
      })) as never,
    });
  };
  const onKeyDown = (event: KeyboardEvent) => {
    const by = event.key === "ArrowDown" ? 1 : event.key === "ArrowUp" ? -1 : 0;
    if (by !== 0) {
      event.preventDefault();
      setAt((before) => Math.min(entries.length - 1, Math.max(0, before + by)));
    } else if (event.key === "Enter") go(entries[at]);
  };
  return (
    <Modal opened onClose={close} closeOnEscape withCloseButton={false} padding="xs" yOffset="12vh" title="Go to">
      <Stack gap="xs">
        <TextInput
          aria-label="Page, or the id of a trace, agent or approval"
          placeholder="Page, or the id of a trace, agent or approval"
          value={typed}
          onChange={(event) => {
            setTyped(event.currentTarget.value);
            setAt(0);
          }}
          onKeyDown={onKeyDown}
          data-autofocus
        />
        <ScrollArea.Autosize mah="50vh">
          <div role="listbox" aria-label="Where to">
            {entries.map((entry, index) => (
              <UnstyledButton
                key={entry.to}
                className="palette-item"
                role="option"
                aria-selected={index === at}
                onClick={() => go(entry)}
              >
                <span>{entry.title}</span>
                <Text span size="xs" c="dimmed">
                  {entry.hint}
                </Text>
              </UnstyledButton>
            ))}
          </div>
        </ScrollArea.Autosize>
      </Stack>
    </Modal>
  );
}

const keepOrg = (search: object): object => ("org" in search ? { org: search.org } : {});
