import type { DescMethodUnary } from "@bufbuild/protobuf";
import { Button, Group, Modal, Progress, Stack, Text, TextInput } from "@mantine/core";
import { type FormEvent, type ReactNode, useRef, useState } from "react";
import { useReadAgain } from "./again.ts";
import { AsCommand, type Call } from "./command.tsx";
import { Failure } from "./failure.tsx";
import { countText } from "./text.ts";

/** What an act on many has come to so far. */
export type Tally = { readonly done: number; readonly failed: number; readonly error?: unknown };

/** What an act on many would do. */
export type Work = {
  readonly count: number;
  /** Whether there are more than it would act on. */
  readonly isMore: boolean;
  /** Does it, and tells as it goes on; stops when the signal is aborted. */
  run(tell: (tally: Tally) => void, signal: AbortSignal): Promise<void>;
};

type Props = {
  readonly label: string;
  readonly title: string;
  readonly about: string;
  /** Reads what fits the current filter. */
  readonly prepare: (signal: AbortSignal) => Promise<Work>;
  readonly call: Call;
  readonly again: readonly DescMethodUnary[];
  /** Fields that it needs, and whether they are filled in. */
  readonly children?: ReactNode;
  readonly isReady?: boolean;
};

/** Acts on everything that fits the current filter: counts it first, and has the number typed before it begins. */
export function Bulk({ label, title, about, prepare, call, again, children, isReady = true }: Props) {
  const readAgain = useReadAgain();
  const over = useRef<AbortController>(undefined);
  const [isOpen, setOpen] = useState(false);
  const [work, setWork] = useState<Work>();
  const [tally, setTally] = useState<Tally>();
  const [typed, type] = useState("");
  const [error, setError] = useState<unknown>();
  const [isRunning, setRunning] = useState(false);
  const open = () => {
    const { signal } = (over.current = new AbortController());
    setOpen(true);
    setWork(undefined);
    setTally(undefined);
    setError(undefined);
    type("");
    prepare(signal).then(setWork, (fault: unknown) => signal.aborted || setError(fault));
  };
  const close = () => {
    over.current?.abort();
    setOpen(false);
  };
  const submit = async (event: FormEvent) => {
    event.preventDefault();
    const signal = over.current?.signal;
    if (!work || !signal) return;
    setRunning(true);
    setTally({ done: 0, failed: 0 });
    try {
      await work.run(setTally, signal);
    } catch (fault) {
      if (!signal.aborted) setError(fault);
    } finally {
      setRunning(false);
      await readAgain(again);
    }
  };
  const isOver = tally !== undefined && !isRunning;
  return (
    <>
      <Button size="compact-sm" variant="default" onClick={open}>
        {label}…
      </Button>
      <Modal opened={isOpen} onClose={close} title={title}>
        <form onSubmit={(event) => void submit(event)}>
          <Stack>
            <Text size="sm">{about}</Text>
            <Text size="sm" role="status">
              {work
                ? `${countText(work.count)} fit the filter${work.isMore ? ", and there are more" : ""}.`
                : !error && "Counting…"}
            </Text>
            {error !== undefined && <Failure error={error} />}
            {work && work.count > 0 && !tally && (
              <>
                {children}
                <TextInput
                  label={`Type ${work.count} to confirm`}
                  inputMode="numeric"
                  value={typed}
                  onChange={({ currentTarget }) => type(currentTarget.value)}
                />
              </>
            )}
            {work && tally && (
              <>
                <Progress value={(100 * (tally.done + tally.failed)) / work.count} aria-label="How far it is" />
                <Text size="sm" role="status">
                  {countText(tally.done)} done{tally.failed > 0 && `, ${countText(tally.failed)} refused`}
                  {isOver && "."}
                </Text>
                {tally.error !== undefined && <Failure error={tally.error} />}
              </>
            )}
            <Group justify="flex-end">
              <AsCommand call={call} />
              {isOver ? (
                <Button onClick={close}>Close</Button>
              ) : (
                <Button
                  type="submit"
                  loading={isRunning}
                  disabled={!work || work.count === 0 || typed.trim() !== String(work.count) || !isReady}
                >
                  {label}
                </Button>
              )}
            </Group>
          </Stack>
        </form>
      </Modal>
    </>
  );
}

/** At most so many at once: a filter that fits more is gone through again. */
const mostAtOnce = 1_000;

/** The work of doing something to each of what a list gives, one after another; what is refused is counted and passed over. */
export async function eachOf<Row>(
  pages: (pageToken: string) => Promise<{ rows: readonly Row[]; nextPageToken: string }>,
  act: (row: Row) => Promise<unknown>,
): Promise<Work> {
  const rows: Row[] = [];
  let pageToken = "";
  do {
    const page = await pages(pageToken);
    rows.push(...page.rows);
    pageToken = page.nextPageToken;
  } while (pageToken !== "" && rows.length < mostAtOnce);
  const those = rows.slice(0, mostAtOnce);
  return {
    count: those.length,
    isMore: pageToken !== "" || rows.length > mostAtOnce,
    run: async (tell, signal) => {
      let tally: Tally = { done: 0, failed: 0 };
      for (const row of those) {
        if (signal.aborted) return;
        try {
          await act(row);
          tally = { ...tally, done: tally.done + 1 };
        } catch (error) {
          tally = { ...tally, failed: tally.failed + 1, error };
        }
        tell(tally);
      }
    },
  };
}
