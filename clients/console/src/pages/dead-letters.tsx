import { fromJson, type JsonValue, toJson } from "@bufbuild/protobuf";
import { timestampMs, ValueSchema } from "@bufbuild/protobuf/wkt";
import { createClient } from "@connectrpc/connect";
import { useMutation, useQuery, useTransport } from "@connectrpc/connect-query";
import { Anchor, Button, Drawer, Group, Select, Stack, Table, Text, Textarea, TextInput, Title } from "@mantine/core";
import { Link } from "@tanstack/react-router";
import { useRef, useState } from "react";
import { ErrorReason } from "../../../../gen/moltwire/api/v1/error_reason_pb.ts";
import { type DeadLetter, DeadLetterSchema, DeadLetterState } from "../../../../gen/moltwire/bus/v1/dead_letter_pb.ts";
import { DeadLetterService } from "../../../../gen/moltwire/bus/v1/dead_letter_service_pb.ts";
import type { TaskAttempt } from "../../../../gen/moltwire/bus/v1/task_pb.ts";
import { useRefresh } from "../live/use-live.ts";
import { useWord } from "../parts/address.ts";
import { useReadAgain } from "../parts/again.ts";
import { Bulk, eachOf } from "../parts/bulk.tsx";
import { AsCommand, callOf } from "../parts/command.tsx";
import { Failure } from "../parts/failure.tsx";
import { WordAgent, WordChoice, WordText } from "../parts/filters.tsx";
import { type Column, List } from "../parts/list.tsx";
import { useAgentNames } from "../parts/names.ts";
import { usePages } from "../parts/pages.ts";
import { Payload, payloadNamed } from "../parts/reveal.tsx";
import { Empty, Facts, Head, State, type Tone } from "../parts/show.tsx";
import { agoText, countText, enumText, spanText, timeText } from "../parts/text.ts";
import { useOrg } from "../session.ts";

const { listDeadLetters, getDeadLetter, resolveDeadLetter, retryDeadLetter } = DeadLetterService.method;

const tones: Readonly<Record<number, Tone>> = {
  [DeadLetterState.UNSPECIFIED]: "off",
  [DeadLetterState.OPEN]: "bad",
  [DeadLetterState.RESOLVED]: "good",
  [DeadLetterState.RETRIED]: "wait",
};

const stateOf = ({ state }: DeadLetter) => (
  <State tone={tones[state] ?? "off"}>{enumText(DeadLetterState, state)}</State>
);
const reasonName = (reason: ErrorReason | undefined): string =>
  Object.entries(ErrorReason).find(([, value]) => value === reason)?.[0] ?? "";

/** Tasks that failed for good. */
export function DeadLetters() {
  const orgId = useOrg();
  const nameOf = useAgentNames();
  const [word, setWord] = useWord("state");
  const [opened, open] = useWord("letter");
  const state = word === "" ? DeadLetterState.OPEN : (Number(word) as DeadLetterState);
  const [reason] = useWord("reason");
  const [contractId] = useWord("contract");
  const [targetAgentId] = useWord("agent");
  const request = { orgId, state, reason: Number(reason) as ErrorReason, contractId, targetAgentId };
  const letters = usePages(listDeadLetters, request, (page) => page.deadLetters);
  useRefresh(
    [listDeadLetters, getDeadLetter],
    ({ type }) => type === "deadletter.created" || type === "COMPLETED" || type === "FAILED",
  );
  const columns: readonly Column<DeadLetter>[] = [
    { name: "State", show: stateOf },
    { name: "Contract", show: ({ contractId }) => contractId },
    { name: "Reason", wide: true, show: ({ error }) => reasonName(error?.reason) },
    { name: "Message", wide: true, show: ({ error }) => <div className="fit">{error?.message}</div> },
    { name: "Agent", wide: true, show: ({ targetAgentId }) => targetAgentId && nameOf(targetAgentId) },
    { name: "Age", right: true, show: ({ createTime }) => agoText(createTime) },
  ];
  return (
    <>
      <Head title="Dead letters" call={callOf(listDeadLetters, request)} onRefresh={letters.refetch}>
        <Select
          size="xs"
          aria-label="State"
          data={[
            { value: String(DeadLetterState.OPEN), label: "Open" },
            { value: String(DeadLetterState.RETRIED), label: "Retried" },
            { value: String(DeadLetterState.RESOLVED), label: "Resolved" },
            { value: "0", label: "All" },
          ]}
          value={String(state)}
          onChange={(value) => setWord(value === String(DeadLetterState.OPEN) ? "" : (value ?? ""))}
          allowDeselect={false}
        />
        <WordText word="contract" label="Contract, exactly" />
        <WordChoice word="reason" label="Reason" choices={reasons} />
        <WordAgent none="Of any agent" />
        {state === DeadLetterState.OPEN && <All request={request} />}
      </Head>
      <List
        label="Dead letters"
        {...letters.list}
        schema={DeadLetterSchema}
        columns={columns}
        keyOf={({ deadLetterId }) => deadLetterId}
        onOpen={({ deadLetterId }) => open(deadLetterId)}
        empty={
          <Empty title={state === DeadLetterState.OPEN ? "No open dead letters" : "None"}>
            A task that fails for good is kept here with its input and every attempt, to be understood and tried again.
          </Empty>
        }
      />
      <Drawer opened={opened !== ""} onClose={() => open("")} position="right" size="xl" title="Dead letter">
        {opened !== "" && <Details key={opened} deadLetterId={opened} />}
      </Drawer>
    </>
  );
}

/** What work that was begun fails with. */
const failures = [
  ErrorReason.CONTRACT_VIOLATION,
  ErrorReason.NO_CAPABLE_AGENT,
  ErrorReason.BUDGET_EXCEEDED,
  ErrorReason.CIRCUIT_OPEN,
  ErrorReason.ADAPTER_ERROR,
  ErrorReason.AGENT_UNREACHABLE,
  ErrorReason.AGENT_TIMEOUT,
  ErrorReason.AGENT_BAD_RESPONSE,
  ErrorReason.OUTCOME_UNKNOWN,
  ErrorReason.DEADLINE_EXCEEDED,
];
const reasons = [
  { value: "", label: "For any reason" },
  ...failures.map((reason) => ({ value: String(reason), label: reasonName(reason) })),
];

type Filter = {
  readonly orgId: string;
  readonly state: DeadLetterState;
  readonly reason: ErrorReason;
  readonly contractId: string;
  readonly targetAgentId: string;
};

/** Retries or resolves everything that fits the filter. */
function All({ request }: { request: Filter }) {
  const { orgId } = request;
  const client = createClient(DeadLetterService, useTransport());
  const [note, setNote] = useState("");
  // It is typed after what fits was counted.
  const latestNote = useRef(note);
  latestNote.current = note;
  const each = (act: (deadLetterId: string) => Promise<unknown>) => (signal: AbortSignal) =>
    eachOf(
      async (pageToken) => {
        const page = await client.listDeadLetters({ ...request, pageSize: 250, pageToken }, { signal });
        return { rows: page.deadLetters, nextPageToken: page.nextPageToken };
      },
      ({ deadLetterId }) => act(deadLetterId),
    );
  return (
    <>
      <Bulk
        label="Retry all"
        title="Retry what fits the filter?"
        about="Each with its input as it was, one after another."
        prepare={each((deadLetterId) => client.retryDeadLetter({ orgId, deadLetterId }))}
        call={callOf(retryDeadLetter, { orgId, deadLetterId: "dlq_…" })}
        again={[listDeadLetters, getDeadLetter]}
      />
      <Bulk
        label="Resolve all"
        title="Resolve what fits the filter?"
        about="Each is kept, with a note that says what was done about it; nothing is tried again."
        prepare={each((deadLetterId) => client.resolveDeadLetter({ orgId, deadLetterId, note: latestNote.current }))}
        call={callOf(resolveDeadLetter, { orgId, deadLetterId: "dlq_…", note })}
        again={[listDeadLetters, getDeadLetter]}
        isReady={note.trim() !== ""}
      >
        <TextInput
          label="Note"
          value={note}
          onChange={({ currentTarget }) => setNote(currentTarget.value)}
          maxLength={2_048}
        />
      </Bulk>
    </>
  );
}

const inputOf = ({ envelope }: DeadLetter): JsonValue | undefined =>
  envelope?.input && toJson(ValueSchema, envelope.input);

const inputText = (input: JsonValue | undefined): string => JSON.stringify(input ?? null, null, 2);

/** What each attempt was and came to: the first in full, of each that follows what was otherwise than in the one before. */
function Attempts({ attempts }: { attempts: readonly TaskAttempt[] }) {
  const nameOf = useAgentNames();
  const factsOf = ({ agentId, contractId, contractVersion, error, startTime, endTime, usage }: TaskAttempt) => ({
    Agent: nameOf(agentId),
    Contract: `${contractId} ${contractVersion}`,
    Reason: reasonName(error?.reason),
    Message: error?.message ?? "",
    Took: startTime && endTime ? spanText(timestampMs(endTime) - timestampMs(startTime)) : "",
    Tokens: usage ? `${countText(usage.inputTokens)} read, ${countText(usage.outputTokens)} written` : "",
  });
  return (
    <>
      <Title order={3} size="h5">
        Attempts
      </Title>
      <Table.ScrollContainer minWidth={280}>
        <Table aria-label="Attempts">
          <Table.Tbody>
            {attempts.map((attempt, index) => {
              const before = attempts[index - 1];
              const was: Readonly<Record<string, string>> = before ? factsOf(before) : {};
              const changed = Object.entries(factsOf(attempt)).filter(([name, text]) => text !== (was[name] ?? ""));
              return (
                <Table.Tr key={attempt.attempt}>
                  <Table.Th scope="row" style={{ verticalAlign: "top" }}>
                    {attempt.attempt}
                  </Table.Th>
                  <Table.Td>
                    {changed.length === 0 && <Text size="sm">as before</Text>}
                    {changed.map(([name, text]) => (
                      <div key={name} className="any">
                        <span className="dimmed">{name}: </span>
                        {was[name] && <del className="dimmed">{was[name]}</del>} {before ? <ins>{text}</ins> : text}
                      </div>
                    ))}
                  </Table.Td>
                </Table.Tr>
              );
            })}
          </Table.Tbody>
        </Table>
      </Table.ScrollContainer>
    </>
  );
}

/** One dead letter: why, each attempt, and a retry with its input as it was or changed. */
function Details({ deadLetterId }: { deadLetterId: string }) {
  const orgId = useOrg();
  const nameOf = useAgentNames();
  const readAgain = useReadAgain();
  const [edited, setEdited] = useState<string>();
  const [fault, setFault] = useState("");
  const [note, setNote] = useState("");
  const { data, error } = useQuery(getDeadLetter, { orgId, deadLetterId });
  const onSuccess = async () => {
    await readAgain([listDeadLetters, getDeadLetter]);
  };
  const retry = useMutation(retryDeadLetter, { onSuccess });
  const resolve = useMutation(resolveDeadLetter, { onSuccess });
  const letter = data?.deadLetter;
  if (!letter) return error ? <Failure error={error} /> : null;
  const tryAgain = () => {
    try {
      setFault("");
      const changed = edited === undefined ? undefined : fromJson(ValueSchema, JSON.parse(edited) as JsonValue);
      retry.mutate({ orgId, deadLetterId, ...(changed && { input: changed }) });
    } catch (wrong) {
      setFault(wrong instanceof Error ? wrong.message : String(wrong));
    }
  };
  return (
    <Stack>
      <Facts
        facts={[
          ["State", stateOf(letter)],
          ["Contract", `${letter.contractId} ${letter.contractVersion}`],
          ["Reason", reasonName(letter.error?.reason)],
          ["Message", letter.error?.message],
          ["Asked by", nameOf(letter.callerAgentId)],
          ["Failed", timeText(letter.createTime)],
          ["Resolved by", letter.resolvedBy],
          ["Note", letter.resolveNote],
          [
            "Trace",
            <Anchor key="trace" component={Link} to={`/traces/${letter.traceId}`} size="sm">
              {letter.traceId}
            </Anchor>,
          ],
        ]}
      />
      <Attempts attempts={letter.attempts} />
      <Payload subject={{ case: "deadLetterId", value: deadLetterId }}>
        {(shown) => (
          <Textarea
            label="Input"
            description="As it was, or changed, for the retry"
            value={edited ?? inputText(shown ? payloadNamed(shown, "input") : inputOf(letter))}
            onChange={(event) => setEdited(event.currentTarget.value)}
            error={fault}
            autosize
            minRows={3}
            maxRows={16}
            classNames={{ input: "mono" }}
          />
        )}
      </Payload>
      {(retry.error ?? resolve.error) && <Failure error={retry.error ?? resolve.error} />}
      {retry.data && (
        <Text size="sm" role="status">
          <State tone="good">Tried again as {retry.data.taskId}</State>
        </Text>
      )}
      <Group>
        <Button onClick={tryAgain} loading={retry.isPending}>
          Retry
        </Button>
        <AsCommand call={callOf(retryDeadLetter, { orgId, deadLetterId })} />
      </Group>
      <TextInput
        label="How it was settled"
        value={note}
        onChange={(event) => setNote(event.currentTarget.value)}
        maxLength={2048}
      />
      <Group>
        <Button
          variant="default"
          disabled={note === ""}
          onClick={() => resolve.mutate({ orgId, deadLetterId, note })}
          loading={resolve.isPending}
        >
          Resolve
        </Button>
      </Group>
    </Stack>
  );
}
