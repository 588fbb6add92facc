/**
 * What is live, the same in all tabs of a browser: one of them, which holds a lock, reads the feeds and tells the others. When it is closed, the lock and the place
 * in the feeds go to another. Browsers allow six connections to a server over HTTP/1.1, so each tab could not read on its own.
 */
import { type Cursors, follow, type Told } from "./feeds.ts";
import type { LiveItem, LiveState } from "./item.ts";

const kept = 500;
/** How often pages hear of what came, whatever its number. */
const tellMs = 150;

type Word =
  | { readonly say: "hello" }
  | { readonly say: "item"; readonly item: LiveItem }
  | { readonly say: "place"; readonly cursors: Cursors; readonly state: LiveState }
  | { readonly say: "past"; readonly items: readonly LiveItem[]; readonly cursors: Cursors; readonly state: LiveState };

/** As it is now; another object after each change. */
export type Snapshot = { readonly state: LiveState; readonly items: readonly LiveItem[] };

export type Live = {
  snapshot(): Snapshot;
  /** Calls back after changes, with what came since the last time. */
  subscribe(listener: (news: readonly LiveItem[]) => void): () => void;
  close(): void;
};

/** Takes part in what is live of an organisation. */
export function openLive(orgId: string): Live {
  const name = `moltwire-live-${orgId}`;
  const channel = new BroadcastChannel(name);
  const over = new AbortController();
  const listeners = new Set<(news: readonly LiveItem[]) => void>();
  let items: readonly LiveItem[] = [];
  let cursors: Cursors = { events: "", steps: "" };
  let state: LiveState = "connecting";
  let leads = false;
  let snapshot: Snapshot = { state, items };
  let news: LiveItem[] = [];
  let timer: ReturnType<typeof setTimeout> | undefined;

  const changed = () => {
    timer ??= setTimeout(() => {
      timer = undefined;
      const told = news;
      news = [];
      items = [...told.toReversed(), ...items].slice(0, kept);
      snapshot = { state, items };
      for (const listener of listeners) listener(told);
    }, tellMs);
  };
  const take = (item: LiveItem) => {
    news.push(item);
    changed();
  };
  const become = (next: LiveState) => {
    if (next === state) return;
    state = next;
    changed();
  };
  const say = (word: Word) => channel.postMessage(word);

  channel.onmessage = ({ data }: MessageEvent<Word>) => {
    if (data.say === "hello") {
      if (leads) say({ say: "past", items: [...news.toReversed(), ...items].slice(0, kept), cursors, state });
      return;
    }
    // Two lead for a moment when a lock is stolen from a frozen tab; each has its own place.
    if (leads) return;
    if (data.say === "item") return take(data.item);
    cursors = data.cursors;
    become(data.state);
    if (data.say === "past" && items.length === 0 && news.length === 0) {
      items = data.items;
      changed();
    }
  };
  say({ say: "hello" });

  const lead = async () => {
    leads = true;
    const live = { events: false, steps: false };
    let isPlaced = false;
    const place = () => {
      if (isPlaced) return;
      isPlaced = true;
      setTimeout(() => {
        isPlaced = false;
        if (!over.signal.aborted) say({ say: "place", cursors, state });
      }, tellMs);
    };
    const told: Told = {
      onItem: (item) => {
        take(item);
        say({ say: "item", item });
      },
      onCursor: (source, cursor) => {
        cursors = { ...cursors, [source]: cursor };
        place();
      },
      onState: (source, isLive) => {
        live[source] = isLive;
        become(live.events && live.steps ? "live" : state === "connecting" && isLive ? "connecting" : "reconnecting");
        place();
      },
    };
    await Promise.all(
      (["events", "steps"] as const).map((source) => follow(source, orgId, cursors[source], told, over.signal)),
    );
  };
  navigator.locks.request(name, { signal: over.signal }, lead).catch((error: unknown) => {
    if (!over.signal.aborted) throw error;
  });

  return {
    snapshot: () => snapshot,
    subscribe: (listener) => {
      listeners.add(listener);
      return () => void listeners.delete(listener);
    },
    close: () => {
      over.abort();
      channel.close();
      clearTimeout(timer);
    },
  };
}
