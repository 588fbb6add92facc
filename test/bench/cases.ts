/** What is measured: each case is one kind of request by so many callers at once. */
import { AgentService } from "../../gen/moltwire/bus/v1/agent_service_pb.ts";
import { BusService } from "../../gen/moltwire/bus/v1/bus_service_pb.ts";
import { MemoryService } from "../../gen/moltwire/memory/v1/memory_service_pb.ts";
import { StatusService } from "../../gen/moltwire/ops/v1/status_service_pb.ts";
import { QueueService } from "../../gen/moltwire/queue/v1/queue_service_pb.ts";
import type { Backlog } from "./backlog.ts";
import type { Governed } from "./governed.ts";
import type { Protocol } from "./http-caller.ts";
import type { Template } from "./load.ts";
import { type Loader, startLoader } from "./loader.ts";
import { counterMark, post, rpc } from "./requests.ts";
import { type Moltwire, maxCallers, type Target } from "./targets.ts";

export type Case = {
  /** Unique, for people. */
  readonly name: string;
  readonly what:
    | ("bare" | "unary" | "autocommit" | "change" | "submit" | "governed" | "set" | "get" | "cycle" | "claim")
    | ("autocommit-set" | "plain-get")
    | ("client-set" | "client-get" | "client-cycle")
    | ("redis-set" | "redis-get" | "redis-cycle" | "boss-cycle");
  readonly callers: number;
  readonly target: Target;
  readonly templates: readonly Template[];
  readonly idPrefix: string | undefined;
  /** What the target speaks. Default: HTTP. */
  readonly speaks?: Protocol;
  /** What sends the load. Default: the load generator of all. */
  readonly loader?: Loader;
};

const unaryCallers = 32;
/** How many callers the durable cases have. */
export const levels = [1, 16, maxCallers] as const;

/** Calls that only read. `bare` answers as many bytes as GetAgent does. */
export function unaryCases(baseline: Target, moltwire: Moltwire): Case[] {
  const { agentKey: key, agentIds } = moltwire;
  const agentId = agentIds[0]!;
  const unary = (name: string, target: Target, template: Template): Case => ({
    name,
    what: target === baseline ? "bare" : "unary",
    callers: unaryCallers,
    target,
    templates: Array.from({ length: unaryCallers }, () => template),
    idPrefix: undefined,
  });
  const getAgent = AgentService.method.getAgent;
  return [
    unary("bare node:http", baseline, post("/bare/160", Buffer.alloc(46), "application/proto", key)),
    unary("GetStatus, with a key", moltwire, rpc(StatusService.method.getStatus, {}, { key })),
    unary("GetAgent", moltwire, rpc(getAgent, { agentId }, { key })),
    unary("GetAgent, JSON", moltwire, rpc(getAgent, { agentId }, { key, json: true })),
  ];
}

/** What an fsync for each command allows: the statements of UpdateAgent on node:http, each request its own transaction. */
export const autocommitCase = (baseline: Target, callers: number): Case => ({
  name: `autocommit, plain SQLite @${callers}`,
  what: "autocommit",
  callers,
  target: baseline,
  templates: Array.from({ length: callers }, (_, i) =>
    post(`/autocommit/agt_${i}`, Buffer.from(`change ${counterMark}`), "text/plain", "none"),
  ),
  idPrefix: undefined,
});

/** The same for SetEntry: its statements, with a value as long as that of {@link setCase}. */
export const autocommitSetCase = (baseline: Target, callers: number): Case => ({
  name: `autocommit of SetEntry, plain SQLite @${callers}`,
  what: "autocommit-set",
  callers,
  target: baseline,
  templates: Array.from({ length: callers }, (_, i) =>
    post(`/set/agt_${i}`, Buffer.from(`value ${counterMark} ${"x".repeat(80)}`), "text/plain", "none"),
  ),
  idPrefix: undefined,
});

/** A read of what {@link autocommitSetCase} wrote, by one statement. */
export const plainGetCase = (baseline: Target, callers: number): Case => ({
  name: `read, plain SQLite @${callers}`,
  what: "plain-get",
  callers,
  target: baseline,
  templates: Array.from({ length: callers }, (_, i) => post(`/get/agt_${i}`, Buffer.alloc(0), "text/plain", "none")),
  idPrefix: undefined,
});

/** UpdateAgent: one transaction, an update and an audit row. Each caller changes its own agent. */
export const changeCase = (moltwire: Moltwire, callers: number): Case => ({
  name: `UpdateAgent, ${moltwire.engine} @${callers}`,
  what: "change",
  callers,
  target: moltwire,
  templates: moltwire.agentIds
    .slice(0, callers)
    .map((agentId) =>
      rpc(
        AgentService.method.updateAgent,
        { agentId, change: { description: `change ${counterMark}` }, updateMask: { paths: ["description"] } },
        { key: moltwire.adminKey },
      ),
    ),
  idPrefix: undefined,
});

/** SetEntry: the entry, its change in the log and the head, in one transaction. Each caller writes one key in the memory of an agent of its own. */
export const setCase = (moltwire: Moltwire, callers: number): Case => ({
  name: `SetEntry, ${moltwire.engine} @${callers}`,
  what: "set",
  callers,
  target: moltwire,
  templates: moltwire.agentIds.slice(0, callers).map((agentId) =>
    rpc(
      MemoryService.method.setEntry,
      {
        agentId,
        write: {
          key: "bench",
          value: {
            kind: {
              case: "json",
              value: { kind: { case: "stringValue", value: `value ${counterMark} ${"x".repeat(80)}` } },
            },
          },
        },
      },
      { key: moltwire.adminKey },
    ),
  ),
  idPrefix: undefined,
});

/** GetEntry of what {@link setCase} has written. */
export const getCase = (moltwire: Moltwire, callers: number): Case => ({
  name: `GetEntry, ${moltwire.engine} @${callers}`,
  what: "get",
  callers,
  target: moltwire,
  templates: moltwire.agentIds
    .slice(0, callers)
    .map((agentId) => rpc(MemoryService.method.getEntry, { agentId, key: "bench" }, { key: moltwire.adminKey })),
  idPrefix: undefined,
});

/** SubmitTask to the echo, until it is completed: accepted, dispatched, completed, each durable, with trace and event. */
export const submitCase = (moltwire: Moltwire, callers: number): Case => ({
  name: `SubmitTask to echo, ${moltwire.engine} @${callers}`,
  what: "submit",
  callers,
  target: moltwire,
  templates: Array.from({ length: callers }, () =>
    rpc(
      BusService.method.submitTask,
      {
        contractId: "echo",
        contractVersion: "1.0.0",
        input: { kind: { case: "stringValue", value: `hello ${counterMark}` } },
      },
      { key: moltwire.adminKey },
    ),
  ),
  idPrefix: "tsk_",
});

/** The queue of the cycles. */
export const benchQueue = "bench";

const jobId = `job_${"0".repeat(32)}`;
const leaseToken = "t".repeat(24);

/** SubmitJob, ClaimJobs, CompleteJob: three requests, each a durable transaction. A caller may get the job of another. */
export function cycleCase(moltwire: Pick<Moltwire, "engine" | "process" | "port" | "agentKey">, callers: number): Case {
  const key = moltwire.agentKey;
  const { submitJob, claimJobs, completeJob } = QueueService.method;
  const payload = { kind: { case: "json", value: { kind: { case: "stringValue", value: "work" } } } } as const;
  const complete = rpc(completeJob, { jobId, leaseToken }, { key, json: true });
  const copy = (name: string, placeholder: string) => ({
    after: `"${name}":"`,
    length: placeholder.length,
    at: Buffer.from(complete.bytes).indexOf(placeholder),
  });
  const cycle: Template = {
    ...rpc(submitJob, { job: { queue: benchQueue, payload } }, { key }),
    next: {
      ...rpc(claimJobs, { queues: [benchQueue] }, { key, json: true }),
      next: { ...complete, copies: [copy("jobId", jobId), copy("leaseToken", leaseToken)] },
    },
  };
  return {
    name: `queue cycle, ${moltwire.engine} @${callers}`,
    what: "cycle",
    callers,
    target: moltwire,
    templates: Array.from({ length: callers }, () => cycle),
    idPrefix: undefined,
  };
}

/**
 * SubmitTask to the echo with everything on that governs: asked for by an agent, decided by the policies of the organisation, as is the tool that the work needs, set aside and settled in budgets of
 * agent and organisation, priced. See `govern`.
 */
export const governedCase = (governed: Governed, callers: number): Case => ({
  name: `governed SubmitTask to echo, ${governed.engine} @${callers}`,
  what: "governed",
  callers,
  target: governed,
  templates: Array.from({ length: callers }, (_, n) =>
    rpc(
      BusService.method.submitTask,
      { contractId: "governed", input: { kind: { case: "stringValue", value: `hello ${counterMark}` } } },
      { key: governed.callerKeys[n % governed.callerKeys.length]! },
    ),
  ),
  idPrefix: "tsk_",
});

/** What a program's callers do through one client of @moltwire/client, which batches what they ask for in one turn. */
export type ClientLoads = Readonly<Record<"set" | "get" | "cycle", Loader>>;

/** Starts a load generator for each. */
export async function startClientLoads({ port, adminKey, agentKey, agentIds }: Moltwire): Promise<ClientLoads> {
  const url = `http://127.0.0.1:${port}`;
  const of = (what: string, key: string, ids: readonly string[]) =>
    startLoader("client-load.ts", [what, url, key, ...ids]);
  const set = await of("set", adminKey, agentIds);
  const get = await of("get", adminKey, agentIds);
  return { set, get, cycle: await of("cycle", agentKey, []) };
}

/** {@link setCase}, {@link getCase} and {@link cycleCase} through the client. */
export const clientCases = (moltwire: Moltwire, loads: ClientLoads, callers: number): Case[] =>
  (["set", "get", "cycle"] as const).map((what) => ({
    name: `${{ set: "SetEntry", get: "GetEntry", cycle: "queue cycle" }[what]} through the client, ${moltwire.engine} @${callers}`,
    what: `client-${what}`,
    callers,
    target: moltwire,
    templates: Array.from({ length: callers }, () => ({ bytes: new Uint8Array(0), counterAt: undefined })),
    idPrefix: undefined,
    loader: loads[what],
  }));

/** The cycle on a queue in which so many jobs wait; told is the time of its claim alone. A claim takes the oldest, and a submit fills up. */
export function claimCase(backlog: Backlog, callers: number): Case {
  const cycle = cycleCase(backlog, callers);
  const timed = ({ next, ...submit }: Template): Template => ({ ...submit, next: { ...next!, timed: true } });
  return {
    ...cycle,
    name: `claim at ${backlog.pending.toLocaleString("en")} pending, ${backlog.engine} @${callers}`,
    what: "claim",
    templates: cycle.templates.map(timed),
  };
}
