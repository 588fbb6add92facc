import type { DescMethodUnary } from "@bufbuild/protobuf";
import { createConnectQueryKey } from "@connectrpc/connect-query";
import { useQueryClient } from "@tanstack/react-query";
import { createContext, use, useEffect, useRef, useSyncExternalStore } from "react";
import type { LiveItem } from "./item.ts";
import type { Live, Snapshot } from "./store.ts";

export const LiveContext = createContext<Live | undefined>(undefined);

const nothing: Snapshot = { state: "connecting", items: [] };
const never = () => () => {};

/** What is live. */
export function useLive(): Snapshot {
  const live = use(LiveContext);
  return useSyncExternalStore(live?.subscribe ?? never, () => live?.snapshot() ?? nothing);
}

/** Reads methods again when something comes that concerns them: soon after, and at most once in `everyMs` however much comes. */
export function useRefresh(
  methods: readonly DescMethodUnary[],
  concerns: (item: LiveItem) => boolean,
  everyMs = 500,
): void {
  const live = use(LiveContext);
  const queries = useQueryClient();
  // Callers make both anew at each rendering; only what they do counts.
  const latest = useRef({ methods, concerns });
  latest.current = { methods, concerns };
  useEffect(() => {
    if (!live) return;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const refresh = () => {
      timer = undefined;
      for (const schema of latest.current.methods)
        void queries.invalidateQueries({ queryKey: createConnectQueryKey({ schema, cardinality: undefined }) });
    };
    let state = live.snapshot().state;
    const stop = live.subscribe((news) => {
      // What happened while the feed was lost comes with it, but what was read meanwhile may be older.
      const isBack = state !== "live" && live.snapshot().state === "live";
      state = live.snapshot().state;
      if (isBack || news.some((item) => latest.current.concerns(item))) timer ??= setTimeout(refresh, everyMs);
    });
    return () => {
      stop();
      clearTimeout(timer);
    };
  }, [live, queries, everyMs]);
}
