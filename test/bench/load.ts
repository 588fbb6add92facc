/** The load generator, in a process of its own: callers that each send a request, wait for the answer, and send the next. */
import { type Answer, type Caller, openCaller, type Protocol } from "./http-caller.ts";

/** A whole request over HTTP/1.1; the eight digits at `counterAt` are another number in each request of a run. */
export type Template = {
  readonly bytes: Uint8Array;
  readonly counterAt: number | undefined;
  /** The request that follows when this one succeeded; the last of a row counts as the answer to all of it. */
  readonly next?: Template;
  /** Whether the time of this request is the one that is told, and not that of the whole row. */
  readonly timed?: boolean;
  /** What is copied into this request from the answer before: so many bytes after a mark. */
  readonly copies?: readonly { readonly after: string; readonly length: number; readonly at: number }[];
};

/** One measurement. There are as many callers as templates. */
export type Job = {
  readonly speaks: Protocol;
  readonly port: number;
  readonly templates: readonly Template[];
  readonly measureMs: number;
  /** What the id in an answer begins with, if answers have one that must differ: it and 36 characters are the id. */
  readonly idPrefix: string | undefined;
};

export type Outcome = {
  /** Answers with status 200, those after the end of the time too. */
  readonly acknowledged: number;
  /** How many different ids there were among them, if they have one. */
  readonly distinctIds: number | undefined;
  readonly failed: number;
  /** The first answer that was no success. */
  readonly failure: string | undefined;
  readonly perSecond: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
  /** The part of the time for which this process had a processor: near 1 it measures itself. */
  readonly busy: number;
};

let counter = 0;

type Request = Template & { readonly bytes: Buffer };

/** Writes into a request what differs from the one before; a mark that is not in the answer leaves it as it was, and the server refuses it. */
function fillIn({ bytes, counterAt, copies = [] }: Request, answer: Answer | undefined): void {
  if (counterAt !== undefined) bytes.write(String(++counter).padStart(8, "0"), counterAt, "latin1");
  for (const { after, length, at } of copies) {
    const found = answer?.bytes.indexOf(after) ?? -1;
    if (found >= 0) answer!.bytes.copy(bytes, at, found + after.length, found + after.length + length);
  }
}

async function measure({ port, speaks, templates, measureMs, idPrefix }: Job): Promise<Outcome> {
  const callers = await Promise.all(templates.map(() => openCaller(port, speaks)));
  const latencies: number[] = [];
  const ids = new Set<string>();
  const prefix = idPrefix === undefined ? undefined : Buffer.from(idPrefix);
  let failed = 0;
  let failure: string | undefined;
  const cpu = process.cpuUsage();
  const startMs = performance.now();
  const endMs = startMs + measureMs;

  async function run(caller: Caller, first: Template): Promise<void> {
    const requests: Request[] = [];
    for (let each: Template | undefined = first; each; each = each.next)
      requests.push({ ...each, bytes: Buffer.from(each.bytes) });
    for (let beganMs = performance.now(); beganMs < endMs; ) {
      let answer: Answer | undefined;
      let timedMs: number | undefined;
      for (const request of requests) {
        fillIn(request, answer);
        const sentMs = performance.now();
        answer = await caller.call(request.bytes);
        if (request.timed) timedMs = performance.now() - sentMs;
        if (answer.status !== 200) break;
      }
      if (!answer) return;
      const nowMs = performance.now();
      latencies.push(timedMs ?? nowMs - beganMs);
      beganMs = nowMs;
      if (answer.status !== 200) {
        failed++;
        failure ??= answer.bytes.toString("latin1");
      } else if (prefix) {
        const at = answer.bytes.indexOf(prefix);
        if (at >= 0) ids.add(answer.bytes.toString("latin1", at, at + prefix.length + 36));
      }
    }
  }

  await Promise.all(callers.map((caller, index) => run(caller, templates[index]!)));
  const tookMs = performance.now() - startMs;
  const { user, system } = process.cpuUsage(cpu);
  for (const caller of callers) caller.close();
  latencies.sort((a, b) => a - b);
  const at = (part: number) => latencies[Math.min(latencies.length - 1, Math.floor(latencies.length * part))] ?? 0;
  return {
    acknowledged: latencies.length - failed,
    distinctIds: prefix && ids.size,
    failed,
    failure,
    perSecond: ((latencies.length - failed) / tookMs) * 1_000,
    p50Ms: at(0.5),
    p99Ms: at(0.99),
    busy: (user + system) / 1_000 / tookMs,
  };
}

process.on("message", (job: Job) => {
  measure(job).then(
    (outcome) => process.send!(outcome),
    (error: unknown) => process.send!({ error: String(error) }),
  );
});
process.on("disconnect", () => process.exit(0));
process.send!("ready");
