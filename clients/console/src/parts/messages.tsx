import { type JsonValue, toJson } from "@bufbuild/protobuf";
import { ValueSchema } from "@bufbuild/protobuf/wkt";
import { useQuery } from "@connectrpc/connect-query";
import { Anchor, Drawer, Group, Stack, Text } from "@mantine/core";
import { Link } from "@tanstack/react-router";
import type { ReactNode } from "react";
import { type Message, MessageSchema, MessageState } from "../../../../gen/moltwire/relay/v1/message_pb.ts";
import { RelayService } from "../../../../gen/moltwire/relay/v1/relay_service_pb.ts";
import { useOrg } from "../session.ts";
import { useWord } from "./address.ts";
import { AsCommand, callOf } from "./command.tsx";
import { Failure } from "./failure.tsx";
import { type Column, List } from "./list.tsx";
import { useAgentNames } from "./names.ts";
import type { Pages } from "./pages.ts";
import { Payload } from "./reveal.tsx";
import { Facts, Json, Mono, State, type Tone } from "./show.tsx";
import { agoText, bytesText, enumText, timeText } from "./text.ts";

const { getMessage } = RelayService.method;

const tones: Readonly<Record<number, Tone>> = {
  [MessageState.UNSPECIFIED]: "off",
  [MessageState.ACCEPTED]: "wait",
  [MessageState.DELIVERED]: "wait",
  [MessageState.READ]: "good",
};

const says = ({ payload }: Message): string => {
  if (payload?.kind.case !== "json") return payload?.kind.case ? bytesText(payload.kind.value.length) : "";
  const json = toJson(ValueSchema, payload.kind.value);
  return typeof json === "string" ? json : JSON.stringify(json);
};

type Props = {
  readonly label: string;
  readonly pages: Pages<Message>;
  readonly empty: ReactNode;
  readonly ofChannel?: boolean;
};

/** The messages of a log, each opened in a drawer. */
export function Messages({ label, pages, empty, ofChannel = false }: Props) {
  const nameOf = useAgentNames();
  const [opened, open] = useWord("message");
  const columns: readonly Column<Message>[] = [
    { name: "No.", right: true, show: ({ sequence }) => String(sequence) },
    { name: "From", show: (one) => one.senderName || nameOf(one.senderAgentId) },
    { name: "Label", wide: true, show: (one) => one.label },
    { name: "Says", show: (one) => <div className="fit">{says(one)}</div> },
    // A channel keeps no account of who has read what.
    ...(ofChannel
      ? []
      : [
          {
            name: "State",
            wide: true,
            show: ({ state }: Message) => <State tone={tones[state] ?? "off"}>{enumText(MessageState, state)}</State>,
          },
        ]),
    { name: "Age", wide: true, right: true, show: ({ createTime }) => agoText(createTime) },
  ];
  return (
    <>
      <List
        label={label}
        {...pages.list}
        schema={MessageSchema}
        columns={columns}
        keyOf={({ messageId }) => messageId}
        onOpen={({ messageId }) => open(messageId)}
        empty={empty}
      />
      <Drawer opened={opened !== ""} onClose={() => open("")} position="right" size="lg" title="Message">
        {opened !== "" && <Details messageId={opened} />}
      </Drawer>
    </>
  );
}

function Details({ messageId }: { messageId: string }) {
  const orgId = useOrg();
  const nameOf = useAgentNames();
  const { data, error } = useQuery(getMessage, { orgId, messageId });
  const message = data?.message;
  if (!message) return error ? <Failure error={error} /> : null;
  return (
    <Stack>
      <Facts
        facts={[
          [
            "State",
            <State key="state" tone={tones[message.state] ?? "off"}>
              {enumText(MessageState, message.state)}
            </State>,
          ],
          ["Id", <Mono key="id">{messageId}</Mono>],
          ["Place", String(message.sequence)],
          [
            "From",
            message.senderName ? `${message.senderName} of another organisation` : nameOf(message.senderAgentId),
          ],
          ["To", message.channel || nameOf(message.recipientAgentId)],
          ["Label", message.label],
          ["Answers", message.replyTo && <Mono key="reply">{message.replyTo}</Mono>],
          ["Thread", message.threadId],
          [
            "Headers",
            Object.entries(message.headers)
              .map((pair) => pair.join(": "))
              .join(", "),
          ],
          ["Accepted", timeText(message.createTime)],
          ["Delivered", message.deliveredTime && timeText(message.deliveredTime)],
          ["Read", message.readTime && timeText(message.readTime)],
          ["Expires", message.expireTime && timeText(message.expireTime)],
          ["Bytes", bytesText(message.sizeBytes)],
        ]}
      />
      <Payload subject={{ case: "messageId", value: messageId }}>
        <Said message={message} />
      </Payload>
      <Group>
        {message.traceId && (
          <Anchor component={Link} to={`/traces/${message.traceId}`} size="sm">
            Its trace
          </Anchor>
        )}
        <AsCommand call={callOf(getMessage, { orgId, messageId })} />
      </Group>
    </Stack>
  );
}

const Said = ({ message: { payload } }: { message: Message }) =>
  payload?.kind.case === "json" ? (
    <Json value={toJson(ValueSchema, payload.kind.value) as JsonValue} />
  ) : (
    <Text size="sm">
      {bytesText(payload?.kind.value?.length ?? 0)} {payload?.contentType}
    </Text>
  );
