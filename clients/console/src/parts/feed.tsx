import { memo } from "react";
import type { LiveItem } from "../live/item.ts";
import { useWord } from "./address.ts";
import { useAgentNames } from "./names.ts";
import { State } from "./show.tsx";
import { clockText } from "./text.ts";

/** What happened, newest first. */
export function Feed({ items }: { items: readonly LiveItem[] }) {
  const nameOf = useAgentNames();
  const [org] = useWord("org");
  return (
    <ul className="feed" aria-label="What happened, newest first">
      {items.map((item) => (
        <Row key={item.id} item={item} agent={item.agentId && nameOf(item.agentId)} org={org} />
      ))}
    </ul>
  );
}

/** Of plain elements, and only made anew when it changes: hundreds come at once. */
const Row = memo(({ item, agent, org }: { item: LiveItem; agent: string; org: string }) => (
  <li>
    <span className="mono dimmed">{clockText(item.timeMs)}</span>
    <div>
      <State tone={item.tone}>{item.type}</State> <span className="dimmed">{agent}</span>{" "}
      {item.traceId && <a href={`#/traces/${item.traceId}${org && `?org=${encodeURIComponent(org)}`}`}>trace</a>}
      {item.text && <div>{item.text}</div>}
    </div>
  </li>
));
