import { useInfiniteQuery } from "@connectrpc/connect-query";
import { Button, SegmentedControl, Stack, Switch, TextInput } from "@mantine/core";
import { useState } from "react";
import { EventService } from "../../../../gen/moltwire/ops/v1/event_service_pb.ts";
import { type LiveItem, ofEvent } from "../live/item.ts";
import { useLive } from "../live/use-live.ts";
import { useWord } from "../parts/address.ts";
import { callOf } from "../parts/command.tsx";
import { Failure } from "../parts/failure.tsx";
import { Feed } from "../parts/feed.tsx";
import { Empty, Head } from "../parts/show.tsx";
import { useOrg } from "../session.ts";

const shownAtOnce = 200;

/** What happens, as it is committed; below it the events of before. */
export function Activity() {
  const orgId = useOrg();
  const live = useLive();
  const [what, setWhat] = useWord("what");
  const [filter, setFilter] = useWord("filter");
  const [held, setHeld] = useState<readonly LiveItem[]>();
  const request = { orgId, newestFirst: true, pageSize: 50, pageToken: "" };
  const past = useInfiniteQuery(EventService.method.listEvents, request, {
    pageParamKey: "pageToken",
    getNextPageParam: ({ nextPageToken }) => nextPageToken || undefined,
    staleTime: Number.POSITIVE_INFINITY,
  });
  const now = held ?? live.items;
  const seen = new Set(now.map(({ id }) => id));
  const before = (past.data?.pages ?? [])
    .flatMap(({ events }) => events.map(ofEvent))
    .filter(({ id }) => !seen.has(id));
  const words = filter.toLowerCase();
  const shown = [...now, ...before].filter(
    ({ from, type, text, traceId, agentId }) =>
      (what === "" || what === from) &&
      (words === "" || `${type} ${text} ${traceId} ${agentId}`.toLowerCase().includes(words)),
  );
  return (
    <>
      <Head
        title="Activity"
        cli="npx moltwire trace tail"
        call={callOf(EventService.method.listEvents, { orgId, newestFirst: true })}
      >
        <SegmentedControl
          size="xs"
          data={[
            { value: "", label: "All" },
            { value: "steps", label: "Steps" },
            { value: "events", label: "Events" },
          ]}
          value={what}
          onChange={setWhat}
        />
        <TextInput
          size="xs"
          aria-label="Filter"
          placeholder="Filter: type, words, trace"
          value={filter}
          onChange={(event) => setFilter(event.currentTarget.value)}
        />
        <Switch
          label="Hold"
          checked={held !== undefined}
          onChange={(event) => setHeld(event.currentTarget.checked ? live.items : undefined)}
        />
      </Head>
      {past.error && <Failure error={past.error} />}
      {shown.length === 0 && !past.isPending ? (
        <Empty title="Nothing yet" command={`npx moltwire submit echo '{"hello":"world"}'`}>
          Every step of a task, and every event, appears here as it is committed. To see one, submit a task:
        </Empty>
      ) : (
        <Stack>
          <Feed items={shown.slice(0, shownAtOnce + (past.data?.pages.length ?? 0) * 50)} />
          {past.hasNextPage && (
            <Button
              variant="default"
              mx="auto"
              onClick={() => void past.fetchNextPage()}
              loading={past.isFetchingNextPage}
            >
              More events of before
            </Button>
          )}
        </Stack>
      )}
    </>
  );
}
