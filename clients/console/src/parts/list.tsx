import type { DescMessage } from "@bufbuild/protobuf";
import { Button, Center, Group, Loader, Stack, Table } from "@mantine/core";
import { type KeyboardEvent, type ReactNode, useEffect, useRef, useState } from "react";
import { flushSync } from "react-dom";
import { Chunk, chunkRows } from "./chunk.tsx";
import { saveJson, saveTable } from "./export.ts";
import { Failure } from "./failure.tsx";

/** A column; `wide` ones are left out on small screens. */
export type Column<Row> = {
  readonly name: string;
  readonly show: (row: Row) => ReactNode;
  readonly wide?: boolean;
  readonly right?: boolean;
};

/** From so many rows on the next page comes by scrolling. */
const endless = 200;

type ListProps<Row> = {
  readonly label: string;
  readonly rows: readonly Row[];
  readonly columns: readonly Column<Row>[];
  readonly keyOf: (row: Row) => string;
  readonly onOpen?: (row: Row) => void;
  readonly isPending: boolean;
  readonly error: unknown;
  readonly empty: ReactNode;
  readonly more?: (() => void) | undefined;
  readonly isFetchingMore?: boolean;
  /** What the rows are messages of: then they can be saved as JSON. */
  readonly schema?: DescMessage;
};

/** A table whose rows are reached with j and k, or the arrows, and opened with Enter. */
export function List<Row>(props: ListProps<Row>) {
  const { label, rows, columns, keyOf, onOpen, isPending, error, empty, more, isFetchingMore, schema } = props;
  const table = useRef<HTMLTableElement>(null);
  const end = useRef<HTMLDivElement>(null);
  const [isWhole, setWhole] = useState(false);

  useEffect(() => {
    if (!onOpen) return;
    const onKey = (event: globalThis.KeyboardEvent) => {
      if (isTyping(event) || (event.key !== "j" && event.key !== "k")) return;
      event.preventDefault();
      step(table.current, event.key === "j" ? 1 : -1);
    };
    window.addEventListener("keydown", onKey);
    return () => window.removeEventListener("keydown", onKey);
  }, [onOpen]);

  // Whoever scrolls on to the end goes on reading, once what is there is long.
  const isLong = rows.length >= endless;
  const [isEndSeen, setEndSeen] = useState(false);
  useEffect(() => {
    if (!isLong || !end.current) return;
    const observer = new IntersectionObserver((entries) => setEndSeen(entries.at(-1)?.isIntersecting ?? false), {
      rootMargin: "800px 0px",
    });
    observer.observe(end.current);
    return () => observer.disconnect();
  }, [isLong]);
  const goesOn = isLong && isEndSeen && more !== undefined && !isFetchingMore && !error;
  const latestMore = useRef(more);
  latestMore.current = more;
  // After each page that came it is asked anew.
  useEffect(() => {
    if (goesOn) latestMore.current?.();
  }, [goesOn, rows.length]);

  if (isPending)
    return (
      <Center p="xl">
        <Loader aria-label="Loading" />
      </Center>
    );
  if (rows.length === 0) return error ? <Failure error={error} /> : empty;
  const save = () => {
    // What is out of sight belongs to the file.
    flushSync(() => setWhole(true));
    saveTable(table.current, label);
    setWhole(false);
  };
  const onRowKey = (row: Row) => (event: KeyboardEvent) => {
    if (event.key === "Enter") onOpen?.(row);
    else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      step(table.current, event.key === "ArrowDown" ? 1 : -1);
    }
  };
  return (
    <Stack gap="sm">
      {Boolean(error) && <Failure error={error} />}
      <Table.ScrollContainer minWidth={280} {...(!onOpen && { scrollAreaProps: { viewportProps: { tabIndex: 0 } } })}>
        <Table ref={table} highlightOnHover={onOpen !== undefined} verticalSpacing="xs" aria-label={label}>
          <Table.Thead>
            <Table.Tr>
              {columns.map(({ name, wide, right }) => (
                <Table.Th key={name} {...(wide && { visibleFrom: "sm" })} ta={right ? "right" : "left"}>
                  {name}
                </Table.Th>
              ))}
            </Table.Tr>
          </Table.Thead>
          {Array.from({ length: Math.ceil(rows.length / chunkRows) }, (_, index) => (
            <Chunk
              key={index}
              columns={columns.length}
              whole={isWhole || !isLong}
              render={() =>
                rows.slice(index * chunkRows, (index + 1) * chunkRows).map((row) => (
                  <Table.Tr
                    key={keyOf(row)}
                    {...(onOpen && {
                      className: "row",
                      tabIndex: 0,
                      onClick: () => onOpen(row),
                      onKeyDown: onRowKey(row),
                    })}
                  >
                    {columns.map(({ name, show, wide, right }) => (
                      <Table.Td
                        key={name}
                        {...(wide && { visibleFrom: "sm" })}
                        {...(right && { className: "right" })}
                        ta={right ? "right" : "left"}
                      >
                        {show(row)}
                      </Table.Td>
                    ))}
                  </Table.Tr>
                ))
              }
            />
          ))}
        </Table>
      </Table.ScrollContainer>
      <Group justify="center" gap="xs" ref={end}>
        {more && (
          <Button variant="default" onClick={more} loading={isFetchingMore ?? false}>
            More
          </Button>
        )}
        <Button variant="default" size="compact-sm" onClick={() => save()}>
          Save as CSV
        </Button>
        {schema && (
          <Button variant="default" size="compact-sm" onClick={() => saveJson(schema, rows as readonly never[], label)}>
            Save as JSON
          </Button>
        )}
      </Group>
    </Stack>
  );
}

/** Whether a key is meant for a field. */
export function isTyping({ target, metaKey, ctrlKey, altKey }: globalThis.KeyboardEvent): boolean {
  const element = target as HTMLElement | null;
  return (
    metaKey ||
    ctrlKey ||
    altKey ||
    element?.closest("input, textarea, select, [contenteditable], [role=dialog]") !== null
  );
}

/** Moves the focus by a row, from nowhere to the first. */
function step(table: HTMLTableElement | null, by: number): void {
  const rows = [...(table?.querySelectorAll<HTMLElement>("tr.row") ?? [])];
  const at = rows.indexOf(document.activeElement as HTMLElement);
  const next = at === -1 ? 0 : Math.min(rows.length - 1, Math.max(0, at + by));
  rows[next]?.focus();
}
