import { Anchor, Text } from "@mantine/core";
import { Link } from "@tanstack/react-router";
import type { LiveItem } from "../live/item.ts";
import { useAgentNames } from "./names.ts";
import { State } from "./show.tsx";
import { clockText } from "./text.ts";

/** What happened, newest first. */
export function Feed({ items }: { items: readonly LiveItem[] }) {
  const nameOf = useAgentNames();
  return (
    <ul className="feed" aria-label="What happened, newest first">
      {items.map(({ id, type, tone, timeMs, text, agentId, traceId }) => (
        <li key={id}>
          <Text size="sm" c="dimmed" className="mono">
            {clockText(timeMs)}
          </Text>
          <div>
            <Text size="sm" span>
              <State tone={tone}>{type}</State>
            </Text>{" "}
            <Text size="sm" span c="dimmed">
              {agentId && `${nameOf(agentId)} `}
              {traceId && (
                <Anchor component={Link} to={`/traces/${traceId}`} size="sm">
                  trace
                </Anchor>
              )}
            </Text>
            {text && <Text size="sm">{text}</Text>}
          </div>
        </li>
      ))}
    </ul>
  );
}
