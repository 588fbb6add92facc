/** Clients that do all sorts of things at once until the server is gone. */
import { fromJson, type JsonValue, toJson } from "@bufbuild/protobuf";
import { ValueSchema } from "@bufbuild/protobuf/wkt";
import { type Client, createClient, type Transport } from "@connectrpc/connect";
import { AgentService } from "../../gen/moltwire/bus/v1/agent_service_pb.ts";
import { BusService } from "../../gen/moltwire/bus/v1/bus_service_pb.ts";
import { ContractService } from "../../gen/moltwire/bus/v1/contract_service_pb.ts";
import { type Task, TaskState } from "../../gen/moltwire/bus/v1/task_pb.ts";
import { ApiKeyService } from "../../gen/moltwire/federation/v1/api_key_service_pb.ts";
import { type Protocol, transport } from "../harness.ts";
import type { Act } from "./agent.ts";
import { answered, type Kind, type Ledger, type Registration, type Submit } from "./ledger.ts";
import type { Random } from "./random.ts";

/** One start of the server: where it is, and the administrator's key of the run's organisation. */
export type Life = {
  readonly url: string;
  readonly adminKey: string;
  /** Set before the signal is sent: from then on calls may break. */
  killed: boolean;
  /** Told of each call that was answered. */
  readonly onAnswer: () => void;
};

const protocols: readonly Protocol[] = ["connect", "connect-json", "grpc", "grpc-web"];
const callMs = 45_000;

/** Clients that share connections, by key. */
export function connections(life: Life, protocol: Protocol) {
  const open = new Map<string, Transport>();
  const to = (secret: string) => {
    const found = open.get(secret) ?? transport(life.url, secret, protocol);
    open.set(secret, found);
    return found;
  };
  return {
    bus: (secret: string): Client<typeof BusService> => createClient(BusService, to(secret)),
    agents: createClient(AgentService, to(life.adminKey)),
    contracts: createClient(ContractService, to(life.adminKey)),
    keys: createClient(ApiKeyService, to(life.adminKey)),
  };
}

type Connections = ReturnType<typeof connections>;

/** One client; `choose` decides what it does next. Ends once the server is gone. */
export async function runClient(life: Life, ledger: Ledger, choose: Random): Promise<void> {
  const to = connections(life, choose.pick(protocols));
  const mine: Submit[] = [];
  while (!life.killed) {
    const dice = choose.next();
    await attempt(life, ledger, async () => {
      if (dice < 0.7) {
        const submit = newSubmit(life, ledger, choose);
        mine.push(submit);
        await send(to, ledger, submit);
      } else if (dice < 0.8) await repeatOne(to, ledger, choose);
      else if (dice < 0.88) await cancelOne(to, choose, mine);
      else if (dice < 0.96) await register(to, ledger, newRegistration(ledger, choose));
      else await createKey(to, ledger, choose);
    });
  }
}

/** Does a call whose answer may be lost with the server; anything else that goes wrong is a surprise. */
export async function attempt(
  life: Life,
  ledger: Pick<Ledger, "lost" | "surprises">,
  call: () => Promise<void>,
): Promise<void> {
  try {
    await call();
    life.onAnswer();
  } catch (error) {
    const word = answered(error);
    if (word === undefined && life.killed) ledger.lost++;
    else ledger.surprises.push(word ?? `a call broke while the server was alive: ${error}`);
  }
}

function newSubmit(life: Life, ledger: Ledger, choose: Random): Submit {
  const kind = choose.pick<Kind>(["echo", "repeat", "once"]);
  const n = ledger.next();
  const submit: Submit = {
    kind,
    orders: { n, plan: kind === "echo" ? ["answer"] : newPlan(choose), slowMs: choose.int(20, 400) },
    contractId: kind === "echo" ? choose.pick(["echo", ...ledger.contracts]) : kind,
    secret: choose.pick([life.adminKey, ...ledger.keys.keys()]),
    returnImmediately: choose.chance(kind === "echo" ? 0.6 : 0.3), // or more would wait for the agent than it takes at once
    idempotencyKey: choose.chance(0.5) ? `submit-${n}` : undefined,
    taskId: undefined,
    ended: undefined,
    cancelTried: false,
    cancelAcknowledged: false,
  };
  ledger.submits.push(submit);
  return submit;
}

function newPlan(choose: Random): Act[] {
  const dice = choose.next();
  if (dice < 0.4) return ["answer"];
  if (dice < 0.75) return ["slow"];
  if (dice < 0.83) return ["fail", "answer"];
  if (dice < 0.87) return ["fail"];
  if (dice < 0.94) return ["busy", "slow"];
  return dice < 0.97 ? ["drop", "answer"] : ["stall", "answer"];
}

/** Sends it, the first time or again, and writes down what is answered. An answer that differs from an earlier one is a surprise. */
export async function send(to: Pick<Connections, "bus">, ledger: Ledger, submit: Submit): Promise<void> {
  const { contractId, returnImmediately, orders, idempotencyKey } = submit;
  const input = fromJson(ValueSchema, orders as unknown as JsonValue);
  const { task } = await to
    .bus(submit.secret)
    .submitTask(
      { contractId, contractVersion: "1.0.0", input, returnImmediately, labels: { n: String(orders.n) } },
      withKey(idempotencyKey),
    );
  note(ledger, submit, task!);
}

export function note(ledger: Ledger, submit: Submit, task: Task): void {
  if (submit.taskId !== undefined && submit.taskId !== task.taskId)
    ledger.surprises.push(`submit ${submit.orders.n} was ${submit.taskId} and is now ${task.taskId}`);
  submit.taskId = task.taskId;
  if (task.state < TaskState.COMPLETED) {
    if (!submit.returnImmediately) ledger.surprises.push(`${task.taskId} was answered before it had ended`);
    return;
  }
  const text = endOf(task);
  if (submit.ended && submit.ended.text !== text)
    ledger.surprises.push(`${task.taskId} ended as ${submit.ended.text} and now as ${text}`);
  submit.ended = { state: task.state, text };
}

/** How a task ended, in a form that can be compared. */
export const endOf = (task: Task): string =>
  JSON.stringify([
    task.state,
    task.output ? toJson(ValueSchema, task.output) : null,
    task.error?.reason ?? 0,
    String(task.endTime?.seconds),
    task.endTime?.nanos,
  ]);

async function repeatOne(to: Connections, ledger: Ledger, choose: Random): Promise<void> {
  const submits = ledger.submits.filter(({ idempotencyKey, taskId }) => idempotencyKey && taskId);
  const registrations = ledger.registrations.filter(({ id }) => id);
  if (choose.chance(0.7) && submits.length > 0) await send(to, ledger, choose.pick(submits));
  else if (registrations.length > 0) await register(to, ledger, choose.pick(registrations));
  else return;
  ledger.repeats++;
}

async function cancelOne(to: Connections, choose: Random, mine: readonly Submit[]): Promise<void> {
  const open = mine.filter(({ taskId, ended, cancelTried }) => taskId && !ended && !cancelTried);
  if (open.length === 0) return;
  const submit = choose.pick(open.slice(-3));
  submit.cancelTried = true;
  try {
    await to.bus(submit.secret).cancelTask({ taskId: submit.taskId!, note: "told to" }, withKey(undefined));
    submit.cancelAcknowledged = true;
  } catch (error) {
    if (!answered(error)?.includes("FAILED_PRECONDITION")) throw error; // it ended first
  }
}

function newRegistration(ledger: Ledger, choose: Random): Registration {
  const what = choose.pick(["agent", "contract"] as const);
  const name = `${what}-${ledger.next()}`;
  const registration: Registration = { what, name, idempotencyKey: `register-${name}`, id: undefined };
  ledger.registrations.push(registration);
  return registration;
}

/** Registers it, the first time or again. */
export async function register(
  to: Pick<Connections, "agents" | "contracts">,
  ledger: Ledger,
  registration: Registration,
): Promise<void> {
  const { what, name, idempotencyKey } = registration;
  const options = withKey(idempotencyKey);
  const id =
    what === "agent"
      ? (await to.agents.registerAgent({ name }, options)).agent!.agentId
      : (
          await to.contracts.registerContract(
            { contractId: name, version: "1.0.0", capability: "echo", repeatable: true },
            options,
          )
        ).contract!.contractId;
  if (registration.id !== undefined && registration.id !== id)
    ledger.surprises.push(`${name} was ${registration.id} and is now ${id}`);
  registration.id = id;
  if (what === "agent") ledger.agents.set(id, name);
  else ledger.contracts.add(id);
}

async function createKey(to: Connections, ledger: Ledger, choose: Random): Promise<void> {
  if (ledger.agents.size === 0) return;
  const agentId = choose.pick([...ledger.agents.keys()]);
  const { secret } = await to.keys.createApiKey({ agentId }, withKey(undefined));
  ledger.keys.set(secret, agentId);
}

const withKey = (idempotencyKey: string | undefined) => ({
  signal: AbortSignal.timeout(callMs),
  ...(idempotencyKey && { headers: { "idempotency-key": idempotencyKey } }),
});
