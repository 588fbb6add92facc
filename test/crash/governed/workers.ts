/** The agents of the run: one over HTTP and one that pulls, both in this process, which outlives every server and writes down each call. */
import { once } from "node:events";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { fromJson, type JsonValue, toJson } from "@bufbuild/protobuf";
import { durationFromMs, ValueSchema } from "@bufbuild/protobuf/wkt";
import type { TaskDelivery } from "../../../gen/moltwire/bus/v1/bus_service_pb.ts";
import { TaskState, TaskStateSchema } from "../../../gen/moltwire/bus/v1/task_pb.ts";
import type { Clients } from "../../harness.ts";
import { answered } from "../ledger.ts";
import { nameOf } from "../verify.ts";
import { attempt as call, type Life } from "../workload.ts";
import { type Book, type Orders, usageOf } from "./asks.ts";

/** `answered`, `failed`: the word was sent. `lost`: it could not be. `refused`: LEASE_LOST. */
export type Outcome = "open" | "answered" | "failed" | "lost" | "refused";

/** One attempt as an agent got it. `acknowledged`: the server said that it has the answer. */
export type Arrival = {
  readonly n: number;
  readonly attempt: number;
  readonly atMs: number;
  outcome: Outcome;
  acknowledged: boolean;
};

export type Moment = "arrived" | "said";

export type Workers = {
  readonly url: string;
  /** All that came in, by task id, in order. */
  readonly arrivals: ReadonlyMap<string, readonly Arrival[]>;
  /** Once the n-th order has arrived first, or its agent has said first how it went. */
  when(n: number, moment: Moment): Promise<void>;
  /** Lets the call that is held for the n-th order be answered. */
  release(n: number): void;
  /** From now on nothing is held. */
  hurry(): void;
  /** Pulls until the server is gone or the signal says to stop; answers first what was held from an earlier life, every other one. */
  pull(life: Life, by: Clients, signal: AbortSignal): Promise<void>;
  close(): Promise<void>;
};

type Handed = { readonly taskId: string; readonly arrival: Arrival; readonly orders: Orders };
type Say = (outcome: "answered" | "failed") => void;

/** How long a delivery is the pulling agent's: longer than a restart, shorter than the run. */
const leaseMs = 3_000;
const capacity = 100;

/** Starts them on a free port of the loopback interface. */
export async function startWorkers(book: Book): Promise<Workers> {
  const arrivals = new Map<string, Arrival[]>();
  const moments = new Map<string, PromiseWithResolvers<void>>();
  const held = new Map<number, () => void>();
  const leased: { readonly delivery: TaskDelivery; readonly handed: Handed }[] = [];
  let hurried = false;
  const moment = (n: number, name: Moment) => {
    const found = moments.get(`${name} ${n}`) ?? Promise.withResolvers<void>();
    moments.set(`${name} ${n}`, found);
    return found;
  };
  const arrive = (taskId: string, attempt: number, orders: Orders): Handed => {
    const arrival: Arrival = { n: orders.n, attempt, atMs: Date.now(), outcome: "open", acknowledged: false };
    arrivals.set(taskId, [...(arrivals.get(taskId) ?? []), arrival]);
    return { taskId, arrival, orders };
  };
  const act = ({ arrival, orders }: Handed, say: Say, hold: () => void) => {
    const { plan, slowMs, n } = orders;
    const order = plan[Math.min(arrival.attempt, plan.length) - 1];
    if (order === "fail") say("failed");
    else if (order === "slow") setTimeout(() => say("answered"), slowMs);
    else if (order === "hold" && !hurried) hold();
    else say("answered");
    moment(n, "arrived").resolve();
  };
  const server = createServer({ keepAliveTimeout: 60_000 }, async (request, response) => {
    const { task } = JSON.parse(await bodyOf(request)) as {
      task: { taskId: string; attempt: number; input: Orders };
    };
    const handed = arrive(task.taskId, task.attempt, task.input);
    const { arrival, orders } = handed;
    response.on("close", () => {
      if (arrival.outcome === "open") arrival.outcome = "lost";
    });
    const say: Say = (outcome) => {
      if (response.destroyed) return;
      response.on("finish", () => {
        arrival.outcome = outcome;
        moment(orders.n, "said").resolve();
      });
      reply(response, outcome, orders.n);
    };
    act(handed, say, () => held.set(orders.n, () => say("answered")));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");

  const respond = async (
    life: Life,
    by: Clients,
    delivery: TaskDelivery,
    handed: Handed,
    outcome: "answered" | "failed",
  ) => {
    const { arrival, taskId } = handed;
    const { n } = handed.orders;
    const { model, ...tokens } = usageOf(n);
    const usage = { model, inputTokens: BigInt(tokens.inputTokens), outputTokens: BigInt(tokens.outputTokens) };
    const said =
      outcome === "answered"
        ? { case: "output" as const, value: fromJson(ValueSchema, { n }) }
        : { case: "failure" as const, value: { message: "told to fail", retryable: true } };
    arrival.outcome = outcome;
    moment(n, "said").resolve();
    await call(life, book, async () => {
      try {
        const request = {
          taskId,
          leaseToken: delivery.leaseToken,
          outcome: said,
          ...(outcome === "answered" && { usage }),
        };
        const { state } = await by.bus.respondTask(request);
        arrival.acknowledged = true;
        if (outcome === "answered" && state !== TaskState.COMPLETED)
          book.surprises.push(`${taskId}: answered, and it is ${nameOf(TaskStateSchema, state)}`);
      } catch (error) {
        if (!answered(error)?.includes("LEASE_LOST")) throw error;
        arrival.outcome = "refused";
      }
    });
  };
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`,
    arrivals,
    when: (n, name) => moment(n, name).promise,
    release: (n) => held.get(n)?.(),
    hurry: () => void (hurried = true),
    async pull(life, by, signal) {
      const late = leased.splice(0).filter((_, index) => index % 2 === 0);
      const words = late.map(({ delivery, handed }) => respond(life, by, delivery, handed, "answered"));
      try {
        const request = { capacity, lease: durationFromMs(leaseMs), instance: "fetcher" };
        for await (const { event } of by.bus.serve(request, { signal })) {
          if (event.case !== "delivery") continue;
          const delivery = event.value;
          const task = delivery.task!;
          const orders = toJson(ValueSchema, task.input!) as unknown as Orders;
          const handed = arrive(task.taskId, task.attempt, orders);
          const say: Say = (outcome) => words.push(respond(life, by, delivery, handed, outcome));
          act(handed, say, () => leased.push({ delivery, handed }));
        }
        book.surprises.push("the stream of deliveries ended by itself");
      } catch (error) {
        const word = answered(error);
        if (!signal.aborted && (word !== undefined || !life.killed))
          book.surprises.push(word ?? `the stream of deliveries broke while the server was alive: ${error}`);
      }
      await Promise.all(words);
    },
    async close() {
      server.close();
      server.closeAllConnections();
      await once(server, "close");
    },
  };
}

async function bodyOf(request: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks).toString();
}

function reply(response: ServerResponse, outcome: "answered" | "failed", n: number): void {
  const [status, body]: [number, JsonValue] =
    outcome === "answered"
      ? [200, { output: { n }, usage: usageOf(n) }]
      : [500, { code: "internal", message: "told to fail" }];
  response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
}
