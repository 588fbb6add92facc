/** What the clients were told, to be held against what the server knows at the end. */
import { Code, ConnectError } from "@connectrpc/connect";
import { ErrorInfoSchema } from "../../gen/google/rpc/error_details_pb.ts";
import type { TaskState } from "../../gen/moltwire/bus/v1/task_pb.ts";
import type { Orders } from "./agent.ts";

/** A contract of the run: `echo` is done inside the server, the others by the agent; `once` is not repeatable. */
export type Kind = "echo" | "repeat" | "once";

/** One SubmitTask: what was sent, by whom, and what came back. */
export type Submit = {
  readonly kind: Kind;
  readonly orders: Orders;
  readonly contractId: string;
  readonly secret: string;
  readonly returnImmediately: boolean;
  readonly idempotencyKey: string | undefined;
  /** Once any answer named it. */
  taskId: string | undefined;
  /** Once any answer said how the task ended. */
  ended: { readonly state: TaskState; readonly text: string } | undefined;
  cancelTried: boolean;
  cancelAcknowledged: boolean;
};

/** A registration under an idempotency key; `id` once it was acknowledged. */
export type Registration = {
  readonly what: "agent" | "contract";
  readonly name: string;
  readonly idempotencyKey: string;
  id: string | undefined;
};

export type Ledger = {
  readonly submits: Submit[];
  readonly registrations: Registration[];
  /** Acknowledged: id → name. */
  readonly agents: Map<string, string>;
  /** Acknowledged contracts of kind `echo`. */
  readonly contracts: Set<string>;
  /** Acknowledged keys: secret → the agent it speaks for. */
  readonly keys: Map<string, string>;
  /** Repeats under an idempotency key that were answered. */
  repeats: number;
  /** Calls whose answer was lost with the server. */
  lost: number;
  /** What must not happen; the run fails with these. */
  readonly surprises: string[];
  /** Counts up, over the whole run. */
  next(): number;
};

export function openLedger(): Ledger {
  let n = 0;
  return {
    submits: [],
    registrations: [],
    agents: new Map(),
    contracts: new Set(),
    keys: new Map(),
    repeats: 0,
    lost: 0,
    surprises: [],
    next: () => ++n,
  };
}

/** What a call failed with: the server's own word, or undefined when the connection ended under it. */
export function answered(error: unknown): string | undefined {
  const wrapped = ConnectError.from(error);
  const [info] = wrapped.findDetails(ErrorInfoSchema);
  return info && `${Code[wrapped.code]} ${info.reason}: ${wrapped.message}`;
}
