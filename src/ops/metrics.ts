import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from "@prometheus-io/client";

/** What is counted, for Prometheus. Names begin with `moltwire_`. */
export type Metrics = {
  /** A stream has opened; call what is given when it closes. */
  streamOpened(): () => void;
  openStreams(): number;
  rpc(method: string, code: string, seconds: number): void;
  commit(batch: { readonly size: number; readonly ms: number }): void;
  /** All of them in the exposition format, and its content type. */
  text(): Promise<string>;
  readonly contentType: string;
};

export function createMetrics(): Metrics {
  const registry = new Registry();
  collectDefaultMetrics({ register: registry });
  const registers = [registry];
  const seconds = new Histogram({
    name: "moltwire_rpc_seconds",
    help: "Time of calls, streams until they end",
    labelNames: ["method", "code"],
    buckets: [0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10, 60],
    registers,
  });
  const streams = new Gauge({ name: "moltwire_open_streams", help: "Streams that are open now", registers });
  const batchSize = new Histogram({
    name: "moltwire_commit_transactions",
    help: "Transactions in one commit",
    buckets: [1, 2, 4, 8, 16, 32, 64, 128, 256],
    registers,
  });
  const batchSeconds = new Histogram({
    name: "moltwire_commit_seconds",
    help: "Time of one commit",
    buckets: [0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1],
    registers,
  });
  const overlong = new Counter({
    name: "moltwire_commit_overlong_total",
    help: "Commits that took more than a second",
    registers,
  });
  let open = 0;
  return {
    streamOpened() {
      streams.set(++open);
      let closed = false;
      return () => {
        if (closed) return;
        closed = true;
        streams.set(--open);
      };
    },
    openStreams: () => open,
    rpc: (method, code, took) => seconds.observe({ method, code }, took),
    commit({ size, ms }) {
      batchSize.observe(size);
      batchSeconds.observe(ms / 1000);
      if (ms > 1000) overlong.inc();
    },
    text: () => registry.metrics(),
    contentType: registry.contentType,
  };
}
