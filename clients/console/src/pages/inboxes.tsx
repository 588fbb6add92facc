import { MessageOrder, RelayService } from "../../../../gen/moltwire/relay/v1/relay_service_pb.ts";
import { useRefresh } from "../live/use-live.ts";
import { useWord } from "../parts/address.ts";
import { callOf, curlOf } from "../parts/command.tsx";
import { WordAgent, WordChoice, WordSwitch, WordText } from "../parts/filters.tsx";
import { Messages } from "../parts/messages.tsx";
import { useAgents } from "../parts/names.ts";
import { usePages } from "../parts/pages.ts";
import { Empty, Head } from "../parts/show.tsx";
import { useOrg } from "../session.ts";

const { listInbox, listSent, send, getMessage } = RelayService.method;

/** What agents wrote to one, or what it wrote. Looking delivers nothing: only the agent's own key does. */
export function Inboxes() {
  const orgId = useOrg();
  const agents = useAgents();
  const [chosen] = useWord("agent");
  const [box] = useWord("box");
  const [unread] = useWord("unread");
  const [label] = useWord("label");
  const agentId = chosen || (agents[0]?.agentId ?? "");
  const isSent = box === "sent";
  const request = {
    ...{ orgId, agentId, order: MessageOrder.NEWEST, unreadOnly: unread !== "" },
    filter: { labels: label ? [label] : [] },
  };
  const inbox = usePages(listInbox, request, (page) => page.messages, { enabled: agentId !== "" && !isSent });
  const sent = usePages(listSent, { orgId, agentId }, (page) => page.messages, { enabled: agentId !== "" && isSent });
  useRefresh([listInbox, listSent, getMessage], ({ type }) => type === "message.received");
  const shown = isSent ? sent : inbox;
  return (
    <>
      <Head
        title="Inboxes"
        about="Looking at a message here does not deliver it: only the agent's own key does."
        call={isSent ? callOf(listSent, { orgId, agentId }) : callOf(listInbox, request)}
        onRefresh={shown.refetch}
      >
        <WordAgent />
        <WordChoice
          word="box"
          label="Which messages"
          choices={[
            { value: "", label: "What came in" },
            { value: "sent", label: "What it sent" },
          ]}
        />
        {!isSent && <WordText word="label" label="Label" />}
        {!isSent && <WordSwitch word="unread" label="Not read yet" />}
      </Head>
      <Messages
        label={isSent ? "Sent" : "Inbox"}
        pages={shown}
        empty={
          <Empty
            title="No messages"
            command={curlOf(
              callOf(send, {
                to: { case: "toAgentId", value: agentId || "agt_…" },
                payload: { kind: { case: "json", value: { kind: { case: "stringValue", value: "hello" } } } },
              }),
            )}
          >
            An inbox keeps what agents write to one for 30 days, in order, whether it is there or not. To write to it:
          </Empty>
        }
      />
    </>
  );
}
