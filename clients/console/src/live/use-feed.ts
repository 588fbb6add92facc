import { Code, type ConnectError } from "@connectrpc/connect";
import { useEffect, useRef, useState } from "react";
import { followFeed } from "./feeds.ts";
import type { LiveState } from "./item.ts";

/** How often a page hears of what came, whatever its number. */
const tellMs = 150;

type Feed<Message> = {
  /** Begins, after what was taken before. */
  begin(signal: AbortSignal): AsyncIterable<Message>;
  /** Takes one message; answers what it is: news, the last word of the feed, or nothing, as when it only tells that it is there. */
  onMessage(message: Message): "news" | "end" | undefined;
  /** What came after the last one taken is not kept: where to go on is forgotten. */
  onGap?(): void;
  /** Called soon after news came, once for many. */
  onNews?(): void;
};

/**
 * Reads a feed of a page's own for as long as the page shows it and somebody sees the page: a browser has six connections to a server, for all of its tabs. What all pages
 * need comes by the one that the tabs share, see store.ts.
 * @param key Of what; undefined: of nothing.
 */
export function useFeed<Message>(key: string | undefined, feed: Feed<Message>): LiveState {
  const [state, setState] = useState<LiveState>("connecting");
  // Callers make it anew at each rendering.
  const latest = useRef(feed);
  latest.current = feed;
  useEffect(() => {
    if (key === undefined) return;
    let reading: AbortController | undefined;
    let isOver = false;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const read = async ({ signal }: AbortController) => {
      setState("connecting");
      await followFeed((either) => latest.current.begin(either), {
        onMessage: (message) => {
          setState("live");
          const what = latest.current.onMessage(message);
          isOver = what === "end";
          if (what === undefined) return;
          timer ??= setTimeout(() => {
            timer = undefined;
            latest.current.onNews?.();
          }, tellMs);
        },
        onLost: (error) => {
          if (isOver || isForGood(error)) return false;
          if (error?.code === Code.OutOfRange) latest.current.onGap?.();
          setState("reconnecting");
          return true;
        },
        signal,
      });
    };
    const look = () => {
      if (document.hidden) {
        reading?.abort();
        reading = undefined;
      } else if (!reading && !isOver) {
        reading = new AbortController();
        void read(reading);
      }
    };
    look();
    document.addEventListener("visibilitychange", look);
    return () => {
      document.removeEventListener("visibilitychange", look);
      reading?.abort();
      clearTimeout(timer);
    };
  }, [key]);
  return state;
}

/** What does not become better by trying again. */
const isForGood = (error: ConnectError | undefined): boolean =>
  error !== undefined &&
  [Code.NotFound, Code.PermissionDenied, Code.Unauthenticated, Code.InvalidArgument, Code.Unimplemented].includes(
    error.code,
  );
