import type { Logger } from "pino";
import type { Clock } from "../clock.ts";
import type { FinishedSpan, Telemetry } from "./span.ts";

/** What became of one batch. */
export type Delivery =
  | { readonly outcome: "taken" /** How many of them the collector did not want. */; readonly rejected: number }
  /** It may be taken later; `afterMs` is what the collector asks for. */
  | { readonly outcome: "later"; readonly why: string; readonly afterMs?: number }
  | { readonly outcome: "refused"; readonly why: string };

/** Sends one batch; never rejects. The signal cuts it short. */
export type Send = (batch: readonly FinishedSpan[], signal: AbortSignal) => Promise<Delivery>;

/** What is told of spans, for metrics: `sent`, `rejected` by the collector, `failed` after all attempts, `dropped` for want of room or time. */
export type SpanResult = "sent" | "rejected" | "failed" | "dropped";

export type ExporterOptions = {
  readonly send: Send;
  readonly clock: Clock;
  /** From 0 to 1, for jitter. */
  readonly chance: () => number;
  readonly log: Logger;
  readonly count: (result: SpanResult, spans: number) => void;
  /** The most spans waiting; one batch more is on its way. Default 8,192. */
  readonly maxQueue?: number;
  /** The most spans in one request. Default 256: to encode them takes about a millisecond. */
  readonly maxBatch?: number;
  /** How long a span waits for company. Default 2 s. */
  readonly delayMs?: number;
};

/** How often a batch is sent before it is given up, within about a minute. */
const maxAttempts = 6;
const firstWaitMs = 1_000;
const maxWaitMs = 30_000;

export type Exporter = Telemetry & { readonly waiting: () => number };

/** Keeps spans until they are sent: a queue with an end, batches one after another, each tried again a few times. Spans that find no room are lost. */
export function openExporter(options: ExporterOptions): Exporter {
  const { send, clock, chance, log, count, maxQueue = 8_192, maxBatch = 256, delayMs = 2_000 } = options;
  let queue: FinishedSpan[] = [];
  let timer: { cancel(): void } | undefined;
  let sending: Promise<void> | undefined;
  let failing = false;
  let closing = false;
  const wake = new AbortController();
  const over = new AbortController();

  function schedule(): void {
    if (sending || closing) return;
    if (queue.length < maxBatch) {
      timer ??= clock.after(delayMs, start);
      return;
    }
    start();
  }

  function start(): void {
    timer?.cancel();
    timer = undefined;
    // Not at once: whoever ended the span should not wait for its encoding.
    sending ??= new Promise<void>((resolve) => setImmediate(resolve)).then(sendAll).finally(() => {
      sending = undefined;
      if (queue.length > 0) schedule();
    });
  }

  /** Batch by batch, a whole one each time but at the end. */
  async function sendAll(): Promise<void> {
    do await deliver(queue.splice(0, maxBatch));
    while (queue.length >= (closing ? 1 : maxBatch) && !over.signal.aborted);
  }

  async function deliver(batch: readonly FinishedSpan[]): Promise<void> {
    for (let attempt = 1; ; attempt++) {
      const delivery = await send(batch, over.signal);
      if (delivery.outcome === "taken") return taken(batch.length, delivery.rejected);
      if (delivery.outcome === "refused" || attempt === maxAttempts || closing)
        return lost(batch.length, delivery.why, attempt);
      const bound = Math.min(maxWaitMs, firstWaitMs * 2 ** (attempt - 1));
      const waitMs = Math.min(maxWaitMs, delivery.afterMs ?? bound / 2 + (chance() * bound) / 2);
      // Rejects when the exporter closes: then the batch has its last attempt at once.
      await clock.sleep(waitMs, wake.signal).catch(() => {});
    }
  }

  function taken(spans: number, rejected: number): void {
    count("sent", spans - rejected);
    if (rejected > 0) count("rejected", rejected);
    if (failing) log.info("spans are taken again");
    failing = false;
  }

  /** Told once, not with each batch: the collector may be away for long. */
  function lost(spans: number, why: string, attempts: number): void {
    count("failed", spans);
    if (!failing)
      log.warn({ spans, attempts, why }, "spans could not be exported and are lost; said once until it works again");
    failing = true;
  }

  return {
    ended(span) {
      if (closing || queue.length >= maxQueue) return count("dropped", 1);
      queue.push(span);
      schedule();
    },
    waiting: () => queue.length,
    async close(graceMs) {
      closing = true;
      wake.abort();
      const cut = setTimeout(() => over.abort(), graceMs);
      while (sending || (queue.length > 0 && !over.signal.aborted)) {
        start();
        await sending;
      }
      clearTimeout(cut);
      if (queue.length > 0) count("dropped", queue.length);
      queue = [];
    },
  };
}
