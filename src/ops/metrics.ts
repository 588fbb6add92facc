import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from "@prometheus-io/client";
import type { Logger } from "pino";
import { ErrorReason } from "../../gen/moltwire/api/v1/error_reason_pb.ts";

/** One value, or one for each value of the gauge's label. */
export type Reading = number | Readonly<Record<string, number>>;

/** What is known at any moment and need only be looked at. */
export type GaugeOptions = {
  readonly name: string;
  readonly help: string;
  /** The label of a reading of several values. */
  readonly label?: string;
  /** Asked at each scrape, for at most 2 s; one that fails is logged and left out. */
  readonly read: () => Reading | Promise<Reading>;
};

/**
 * What is counted, for Prometheus; METRICS.md beside this file lists all of it. Names begin with `moltwire_` and end in their unit. A label
 * has few values, all known before: never the id or name of an organisation, an agent, a contract.
 */
export type Metrics = {
  /** A stream has opened; call what is given when it closes. */
  streamOpened(): () => void;
  openStreams(): number;
  /** A call has ended; `reason` is its ErrorReason, or empty. */
  rpc(method: string, code: string, reason: string, seconds: number): void;
  commit(batch: { readonly size: number; readonly ms: number }): void;
  /** A feed has delivered what was committed so long ago. */
  delivered(seconds: number): void;
  /** An outgoing call has ended: the class of its status, as `2xx`, or why there was none. */
  outgoing(result: string): void;
  /** Where an area has its own state shown: queues, breakers, pools. */
  gauge(options: GaugeOptions): void;
  counter<L extends string>(name: string, help: string, labels?: readonly L[]): Counter<L>;
  histogram<L extends string>(
    name: string,
    help: string,
    buckets: readonly number[],
    labels?: readonly L[],
  ): Histogram<L>;
  /** All of them in the exposition format, and its content type. */
  text(): Promise<string>;
  readonly contentType: string;
};

/** The values of a label `reason`: an ErrorReason, or NONE. */
export const reasons: readonly string[] = [
  ...Object.keys(ErrorReason).filter((name) => name !== "UNSPECIFIED"),
  "NONE",
];

const maxReadMs = 2_000;

export function createMetrics(log: Logger): Metrics {
  const registry = new Registry();
  collectDefaultMetrics({ register: registry });
  const registers = [registry];
  const counter: Metrics["counter"] = (name, help, labels = []) =>
    new Counter({ name, help, labelNames: labels, registers });
  const histogram: Metrics["histogram"] = (name, help, buckets, labels = []) =>
    new Histogram({ name, help, buckets: [...buckets], labelNames: labels, registers });
  const gauge: Metrics["gauge"] = ({ name, help, label, read }) => {
    new Gauge({
      name,
      help,
      registers,
      labelNames: label ? [label] : [],
      async collect() {
        try {
          const reading = await inTime(read());
          this.reset();
          if (typeof reading === "number") this.set(reading);
          else for (const [value, number] of Object.entries(reading)) this.set({ [label!]: value }, number);
        } catch (error) {
          this.reset();
          if (!label) this.remove(); // else it would be 0
          log.error({ err: error, metric: name }, "a metric could not be read");
        }
      },
    });
  };

  const seconds = histogram(
    "moltwire_rpc_seconds",
    "Time of calls, streams until they end",
    [0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10, 60],
    ["method", "code"],
  );
  const errors = counter("moltwire_rpc_errors_total", "Calls that failed, by reason", ["reason"]);
  // From the start: a rate does not see the first of a series that was not there.
  for (const reason of reasons) errors.inc({ reason }, 0);
  const batchSize = histogram(
    "moltwire_commit_transactions",
    "Transactions in one commit",
    [1, 2, 4, 8, 16, 32, 64, 128, 256],
  );
  const batchSeconds = histogram(
    "moltwire_commit_seconds",
    "Time of one commit",
    [0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1],
  );
  const overlong = counter("moltwire_commit_overlong_total", "Commits that took more than a second");
  const lag = histogram(
    "moltwire_feed_lag_seconds",
    "Time from a commit to its delivery by a feed",
    [0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10, 60],
  );
  const calls = counter("moltwire_egress_calls_total", "Outgoing calls by result", ["result"]);
  let open = 0;
  gauge({ name: "moltwire_open_streams", help: "Streams that are open now", read: () => open });
  return {
    streamOpened() {
      open++;
      let closed = false;
      return () => {
        if (!closed) open--;
        closed = true;
      };
    },
    openStreams: () => open,
    rpc(method, code, reason, took) {
      seconds.observe({ method, code }, took);
      if (code !== "ok") errors.inc({ reason: reason || "NONE" });
    },
    commit({ size, ms }) {
      batchSize.observe(size);
      batchSeconds.observe(ms / 1000);
      if (ms > 1000) overlong.inc();
    },
    delivered: (after) => lag.observe(after),
    outgoing: (result) => calls.inc({ result }),
    gauge,
    counter,
    histogram,
    text: () => registry.metrics(),
    contentType: registry.contentType,
  };
}

/** Storage that hangs must not keep the other metrics from whoever wants to know why. */
async function inTime<T>(reading: T | Promise<T>): Promise<T> {
  if (!(reading instanceof Promise)) return reading;
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not read within ${maxReadMs} ms`)), maxReadMs);
  });
  try {
    return await Promise.race([reading, late]);
  } finally {
    clearTimeout(timer);
  }
}
