import { setTimeout as sleep } from "node:timers/promises";
import pg from "pg";
import type { Bells } from "./db.ts";
import { destroy, isAbsence, isSilence } from "./postgres-wire.ts";

const channel = "moltwire_bells";
/** Rings within this time go out as one notification: each takes a lock of the whole server at its commit. */
const coalesceMs = 3;
/** PostgreSQL refuses a payload of 8,000 bytes. */
const maxPayloadBytes = 7_999;
/** Rings kept while the connection is away; beyond, every bell of the others rings on its return. */
const maxPending = 10_000;
/** With the 5 s that an answer may take: a database that is back is found within 7 s. */
const maxBackoffMs = 2_000;
/** A machine that stalled may miss one answer; a database that is silent this often is away. */
const silencesOfAbsence = 2;
/** A payload that is no list of topics: ring everything. */
const everything = "*";

export type BellsOptions = {
  readonly bells: Bells;
  /** A connection that a network has dropped in silence is found out by asking: how often, and how long the answer may take. */
  readonly heartbeatMs: number;
  readonly onAway: () => void;
  /** The connection was lost and there is a new one. */
  readonly onBack: () => void;
};

export type PostgresBells = {
  /** Tells the other processes, soon. Topics are at most `maxTopicLength` long. */
  readonly notify: (topics: Iterable<string>) => void;
  /** Whether the database is away: it refuses connections, takes no writes, or is silent. */
  readonly isAway: () => boolean;
  /** Sends what is waiting, then hangs up. */
  readonly close: () => Promise<void>;
};

/**
 * The bells between processes: one connection that listens and notifies, beside the transactions and after their
 * commits (a notification inside each would make them commit one after another). While it is away rings are missed,
 * so on its return all bells of this process ring. The connection is open when this resolves.
 *
 * Being the one connection that is always tried again, it is also how a process knows that the database is away: `onAway` is called when it is found so, and
 * again with each try in vain.
 */
export async function openPostgresBells(
  config: pg.ClientConfig,
  { bells, heartbeatMs, onAway, onBack }: BellsOptions,
): Promise<PostgresBells> {
  const stopping = new AbortController();
  const pending = new Set<string>();
  let overflowed = false;
  let away = false;
  let client: pg.Client | undefined;
  let timer: NodeJS.Timeout | undefined;
  let flushing: Promise<void> | undefined;

  async function connect(): Promise<void> {
    const next = new pg.Client({ ...config, connectionTimeoutMillis: heartbeatMs, query_timeout: heartbeatMs });
    next.on("error", () => {}); // always followed by "end"
    next.on("notification", ({ processId, payload = "" }) => {
      if (processId !== backendOf(next)) hear(payload); // our own have rung already
    });
    try {
      await next.connect();
      await next.query(`listen ${channel}`);
    } catch (error) {
      destroy(next);
      throw error;
    }
    next.once("end", () => {
      if (client === next) client = undefined;
      if (!stopping.signal.aborted) void reconnect();
    });
    client = next;
  }

  async function reconnect(): Promise<void> {
    let silences = 0;
    for (let attempt = 0; !stopping.signal.aborted; attempt++) {
      const backoffMs = Math.min(maxBackoffMs, 50 * 2 ** attempt) * (0.5 + Math.random() / 2);
      try {
        await sleep(backoffMs, undefined, { signal: stopping.signal });
        await connect();
        away = false;
        if (stopping.signal.aborted) return hangUp();
        onBack();
        bells.ringAll();
        return schedule();
      } catch (error) {
        if (stopping.signal.aborted || !isAbsence(error)) continue;
        if (isSilence(error) && ++silences < silencesOfAbsence) continue;
        away = true;
        onAway();
      }
    }
  }

  function hear(payload: string): void {
    if (payload === everything) bells.ringAll();
    else bells.ring(JSON.parse(payload) as string[]);
  }

  function notify(topics: Iterable<string>): void {
    for (const topic of topics) pending.add(topic);
    if (pending.size > maxPending) {
      pending.clear();
      overflowed = true;
    }
    schedule();
  }

  function schedule(): void {
    if (pending.size > 0 || overflowed) timer ??= setTimeout(() => void flush(), coalesceMs);
  }

  function flush(): Promise<void> {
    clearTimeout(timer);
    timer = undefined;
    flushing ??= send().finally(() => {
      flushing = undefined;
      if (client) schedule();
    });
    return flushing;
  }

  async function send(): Promise<void> {
    if (!client) return; // its return sends what has gathered
    const payloads = overflowed ? [everything] : packTopics(pending); // none is a heartbeat
    const topics = [...pending];
    pending.clear();
    overflowed = false;
    try {
      await client.query({ name: "notify", text: notifyText, values: [channel, payloads] });
    } catch {
      if (payloads[0] === everything) overflowed = true;
      else for (const topic of topics) pending.add(topic);
      hangUp();
    }
  }

  function hangUp(): void {
    if (client) destroy(client);
  }

  const heartbeat = setInterval(() => void flush(), heartbeatMs);
  heartbeat.unref();

  await connect();
  return {
    notify,
    isAway: () => away,
    async close() {
      clearInterval(heartbeat);
      await flushing;
      await flush();
      clearTimeout(timer);
      stopping.abort();
      await client?.end().catch(() => {});
    },
  };
}

const notifyText = "select pg_notify($1, payload) from unnest($2::text[]) payload";

/** The topics as JSON lists, as few as the limit of a payload allows. Each topic is far shorter than that. */
export function packTopics(topics: Iterable<string>): string[] {
  const payloads: string[] = [];
  let packed: string[] = [];
  let bytes = 2; // the brackets
  for (const topic of topics) {
    const item = JSON.stringify(topic);
    const itemBytes = Buffer.byteLength(item) + 1; // its comma
    if (bytes + itemBytes > maxPayloadBytes && packed.length > 0) {
      payloads.push(`[${packed.join(",")}]`);
      packed = [];
      bytes = 2;
    }
    packed.push(item);
    bytes += itemBytes;
  }
  if (packed.length > 0) payloads.push(`[${packed.join(",")}]`);
  return payloads;
}

/** The server process behind a connection; the driver knows it but does not declare it. */
const backendOf = (client: pg.Client): number | null => (client as pg.Client & { processID: number | null }).processID;
