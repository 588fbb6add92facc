import { randomBytes } from "node:crypto";
import { fileURLToPath } from "node:url";
import { fromBinary } from "@bufbuild/protobuf";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { connectClients } from "../clients/cli/connect.ts";
import { federate } from "../clients/demo/federate.ts";
import { Role } from "../gen/moltwire/api/v1/access_pb.ts";
import { TrustTier } from "../gen/moltwire/bus/v1/agent_pb.ts";
import { BudgetPeriod, BudgetScope } from "../gen/moltwire/bus/v1/budget_pb.ts";
import { TaskState } from "../gen/moltwire/bus/v1/task_pb.ts";
import { PeerReceiptSchema, type PeerResult } from "../gen/moltwire/federation/v1/peer_envelope_pb.ts";
import { sql } from "../src/db/db.ts";
import type { Adapter } from "../src/server.ts";
import {
  contract,
  eventsOf,
  httpEndpoint,
  json,
  kindsOf,
  reasonOf,
  stateOf,
  value,
  whenEnded,
} from "./bus-fixtures/bus.ts";
import { deadUrl, httpAgent } from "./bus-fixtures/http-agent.ts";
import { serverProcess } from "./bus-fixtures/process.ts";
import { storage } from "./bus-fixtures/storage.ts";
import { handMade, post } from "./federation-fixtures/hand-made.ts";
import { line } from "./federation-fixtures/line.ts";
import { type Federated, federated, grantedBy, peers } from "./federation-fixtures/peers.ts";
import { clientsAt, dialects, eventually, start, unique, type World } from "./harness.ts";

const nothing = { inputTokens: 0, outputTokens: 0, model: "" };
const scripted = { kind: { case: "custom", value: { adapter: "scripted", config: {} } } } as const;

describe.each(dialects)("%s", (dialect) => {
  /** A asks, B does. */
  let a: World;
  let b: World;
  /** What the agents of B do whose endpoint is `scripted`. */
  let work: Adapter;
  const adapters = { scripted: ((...of) => work(...of)) satisfies Adapter };
  beforeAll(async () => {
    a = await start(dialect);
    b = await start(dialect, { adapters });
  });
  afterAll(async () => {
    await a[Symbol.asyncDispose]();
    await b[Symbol.asyncDispose]();
  });

  describe("a task for another server", () => {
    test("is done there by an agent and answered here, and costs and receipt come with it", async () => {
      const at = await federated(a, b, { agent: { endpoint: scripted } });
      await at.doing.admin.costs.setRates({
        rates: [{ inputPer1000TokensMicros: 1_000n, outputPer1000TokensMicros: 2_000n }],
      });
      work = async (_endpoint, { input }) => ({
        output: { heard: input },
        usage: { inputTokens: 1_000, outputTokens: 2_000, model: "secret-model" },
      });
      const task = await at.go({ input: { say: "hello" } });
      expect([stateOf(task), json(task.output)]).toEqual(["COMPLETED", { heard: { say: "hello" } }]);
      expect(task).toMatchObject({
        costMicros: 5_000n,
        usage: { inputTokens: 1_000n, outputTokens: 2_000n, model: "" },
      });
      const here = await eventsOf(a.operator, task.traceId, at.far.orgId);
      const there = await eventsOf(at.doing.admin, task.traceId);
      expect(kindsOf(there)).toContain("COMPLETED");
      const receipt = here.find(({ kind }) => kindsOf([{ kind } as never])[0] === "PEER_RECEIPT")!.details!;
      expect(receipt).toMatchObject({ cost_micros: 5_000, input_tokens: 1_000, output_tokens: 2_000 });
      const signed = fromBinary(PeerReceiptSchema, Buffer.from(receipt.payload as string, "base64"));
      expect(signed).toMatchObject({ callId: task.taskId, traceId: task.traceId, orgId: at.doing.orgId });
      const [mine] = (await at.asking.admin.gateway.getStatus({ traceId: task.traceId })).statuses;
      expect(mine).toMatchObject({ state: TaskState.COMPLETED, costMicros: 5_000n });
      const [usage] = (await b.operator.grants.getGrantUsage({ orgId: at.doing.orgId, grantId: at.grantThere })).days;
      expect(usage).toMatchObject({ requests: 1n, tokens: 3_000n, costMicros: 5_000n });
      const [spent] = (await b.operator.bus.listTasks({ orgId: at.near.orgId })).tasks;
      expect(spent).toMatchObject({ labels: { from_org_id: at.asking.orgId, from_agent_id: at.asker.agentId } });
      expect(spent).toMatchObject({ traceId: task.traceId, callerAgentId: at.near.agentId });
    });

    test("is decided there as coming from the organisation that stands for this server: by its policies and its grant", async () => {
      const at = await federated(a, b);
      expect(stateOf(await at.go())).toBe("COMPLETED");
      const cedarText = `forbid (principal, action == Action::"invoke", resource) when { context has direction && context.direction == "in" };`;
      await at.doing.admin.policies.putPolicy({ policyId: "none", cedarText });
      const denied = await at.go();
      expect([stateOf(denied), reasonOf(denied)]).toEqual(["FAILED", "ADAPTER_ERROR"]);
      const failed = async (traceId: string) =>
        (await eventsOf(a.operator, traceId, at.far.orgId)).find(({ details }) => details?.peer_reason)!.details;
      expect(await failed(denied.traceId)).toMatchObject({ peer_reason: "POLICY_DENIED" });
      await at.doing.admin.policies.deletePolicy({ policyId: "none" });
      await at.doing.admin.grants.revokeGrant({ grantId: at.grantThere });
      expect(await failed((await at.go()).traceId)).toMatchObject({ peer_reason: "NOT_FOUND" });
    });

    test("that costs more than the grant here lets is refused there before it is begun", async () => {
      let calls = 0;
      work = async () => ({ output: ++calls, usage: nothing });
      const at = await federated(a, b, {
        ...{ agent: { endpoint: scripted }, contract: { estimatedTokens: 1_000n } },
        grantHere: { terms: { priceCapMicros: 999n } },
      });
      const rate = (micros: bigint) => ({ inputPer1000TokensMicros: micros, outputPer1000TokensMicros: micros });
      await at.doing.admin.costs.setRates({ rates: [rate(1_000n)] });
      const task = await at.go();
      const events = await eventsOf(a.operator, task.traceId, at.far.orgId);
      expect(events.find(({ details }) => details?.peer_reason)!.details).toMatchObject({
        peer_reason: "GRANT_TERMS_EXCEEDED",
      });
      expect([stateOf(task), calls]).toEqual(["FAILED", 0]);
    });

    test("whose receipt says more than was left for it counts with that, by the cap of the grant and by the budgets of who asked", async () => {
      const counted = async (at: Federated) => {
        await at.doing.admin.costs.setRates({
          rates: [{ inputPer1000TokensMicros: 1_000n, outputPer1000TokensMicros: 2_000n }],
        });
        work = async () => ({ output: "dear", usage: { inputTokens: 1_000, outputTokens: 2_000, model: "" } });
        const task = await at.go();
        const events = await eventsOf(a.operator, task.traceId, at.far.orgId);
        const { details, message } = events.find((event) => kindsOf([event])[0] === "PEER_RECEIPT")!;
        expect(details).toMatchObject({ cost_micros: 5_000, input_tokens: 1_000, output_tokens: 2_000 });
        expect(message).toContain("more than was left");
        return task;
      };
      const agent = { endpoint: scripted };
      const capped = await counted(await federated(a, b, { agent, grantHere: { terms: { priceCapMicros: 4_000n } } }));
      expect(capped).toMatchObject({ costMicros: 4_000n, usage: { inputTokens: 1_000n, outputTokens: 2_000n } });
      const at = await federated(a, b, { agent });
      const of = { scope: BudgetScope.ORG, period: BudgetPeriod.TOTAL };
      await at.asking.admin.budgets.setBudget({ ...of, limitCreditsMicros: 700n, limitTokens: 2_500n });
      expect(await counted(at)).toMatchObject({
        ...{ costMicros: 700n, usage: { inputTokens: 1_000n, outputTokens: 1_500n } },
      });
      const { budget } = await at.asking.admin.budgets.getBudget(of);
      expect([budget!.tokens!.spent, budget!.credits!.spentMicros]).toEqual([2_500n, 700n]);
    });

    test("does not count with others at the same time more than was left for all of them: of a budget, and of the grant's day", async () => {
      /** Two at once, of which each has asked what is left before any is counted. */
      const together = async (at: Federated) => {
        await at.doing.admin.costs.setRates({
          rates: [{ inputPer1000TokensMicros: 1_000n, outputPer1000TokensMicros: 2_000n }],
        });
        const { promise: begun, resolve } = Promise.withResolvers<void>();
        let calls = 0;
        work = async () => {
          if (++calls === 2) resolve();
          await begun;
          return { output: "dear", usage: { inputTokens: 1_000, outputTokens: 2_000, model: "" } };
        };
        const tasks = await Promise.all([at.go(), at.go()]);
        expect(tasks.map(stateOf)).toEqual(["COMPLETED", "COMPLETED"]);
        const tokens = tasks.map(({ usage }) => Number(usage!.inputTokens + usage!.outputTokens));
        const steps = await Promise.all(tasks.map(({ traceId }) => eventsOf(a.operator, traceId, at.far.orgId)));
        const bound = steps.flat().filter(({ details }) => details?.action === "bound");
        expect(bound.map(({ details }) => details!.tokens)).toEqual([Math.min(...tokens)]);
        return { tokens: tokens[0]! + tokens[1]!, micros: Number(tasks[0]!.costMicros + tasks[1]!.costMicros) };
      };
      const agent = { endpoint: scripted };
      const at = await federated(a, b, { agent });
      const of = { scope: BudgetScope.ORG, period: BudgetPeriod.TOTAL };
      await at.asking.admin.budgets.setBudget({ ...of, limitCreditsMicros: 700n, limitTokens: 4_000n });
      expect(await together(at)).toEqual({ tokens: 4_000, micros: 700 });
      const { budget } = await at.asking.admin.budgets.getBudget(of);
      expect([budget!.tokens!.spent, budget!.credits!.spentMicros]).toEqual([4_000n, 700n]);
      const daily = await federated(a, b, { agent, grantHere: { terms: { tokensPerDay: 5_000n } } });
      expect(await together(daily)).toEqual({ tokens: 5_000, micros: 10_000 });
      const { days } = await a.operator.grants.getGrantUsage({ orgId: daily.far.orgId, grantId: daily.grantHere });
      expect(days.map(({ tokens }) => tokens)).toEqual([5_000n]);
    });

    test("that fails there fails here, and what it used is told all the same", async () => {
      const at = await federated(a, b, { agent: { endpoint: scripted } });
      work = async () => {
        throw new Error("broken");
      };
      const task = await at.go();
      expect([stateOf(task), reasonOf(task)]).toEqual(["FAILED", "ADAPTER_ERROR"]);
      const events = await eventsOf(a.operator, task.traceId, at.far.orgId);
      expect(kindsOf(events)).toContain("PEER_RECEIPT");
      expect(events.find(({ details }) => details?.peer_reason)!.details).toMatchObject({
        peer_reason: "ADAPTER_ERROR",
      });
    });

    test("that is canceled here is canceled there", async () => {
      const at = await federated(a, b, { agent: { endpoint: scripted } });
      const { promise: begun, resolve } = Promise.withResolvers<string>();
      work = (_endpoint, { taskId }, signal) =>
        new Promise((_, reject) => {
          resolve(taskId);
          signal.addEventListener("abort", () => reject(signal.reason), { once: true });
        });
      const { taskId } = await at.go({ returnImmediately: true });
      const thereId = await begun;
      await at.asker.as.bus.cancelTask({ taskId });
      expect(stateOf(await whenEnded(at.doing.admin, thereId))).toBe("CANCELED");
    });

    test("is asked for again by the same name when the answer is lost, and done once", async () => {
      await using between = await line(b.url);
      const at = await federated(a, b, { agent: { endpoint: scripted }, url: between.url });
      const { promise: begun, resolve } = Promise.withResolvers<void>();
      const { promise: goOn, resolve: letGo } = Promise.withResolvers<void>();
      let calls = 0;
      work = async () => {
        calls++;
        resolve();
        await goOn;
        return { output: "once", usage: nothing };
      };
      const { taskId } = await at.go({ returnImmediately: true });
      await begun;
      between.cut();
      letGo();
      const task = await whenEnded(at.asker.as, taskId);
      expect([stateOf(task), json(task.output), calls]).toEqual(["COMPLETED", "once", 1]);
      expect((await b.operator.bus.listTasks({ orgId: at.near.orgId })).tasks).toHaveLength(1);
    });

    test("whose answer never comes ends by its time, as nobody knows whether it was done", async () => {
      const at = await federated(a, b, { agent: { endpoint: scripted }, contract: { timeoutMs: 3_000 } });
      work = (_endpoint, _assignment, signal) =>
        new Promise((_, reject) => {
          signal.addEventListener("abort", () => reject(signal.reason), { once: true });
        });
      const task = await at.go();
      expect(stateOf(task)).toBe("FAILED");
      expect(["OUTCOME_UNKNOWN", "AGENT_TIMEOUT", "ADAPTER_ERROR"]).toContain(reasonOf(task));
      const [there] = (await b.operator.bus.listTasks({ orgId: at.near.orgId })).tasks;
      await eventually(
        async () => (await b.operator.bus.getTask({ orgId: at.near.orgId, taskId: there!.taskId })).task!.state > 3,
      );
    });

    test("whose server cannot be reached was not begun", async () => {
      const at = await federated(a, b, {});
      const url = await deadUrl();
      await a.server.app.db.tx((tx) =>
        tx.run(sql`update federation_peer set base_url = ${url} where peer_id = ${at.far.peerId}`),
      );
      expect(reasonOf(await at.go())).toBe("AGENT_UNREACHABLE");
    });

    test("that waits for an approval there is left, and says so", async () => {
      const at = await federated(a, b, { contract: { approvalRequired: true } });
      const task = await at.go();
      const events = await eventsOf(a.operator, task.traceId, at.far.orgId);
      expect(events.find(({ details }) => details?.peer_reason)!.details).toMatchObject({
        peer_reason: "APPROVAL_REQUIRED",
      });
      const [there] = (await b.operator.bus.listTasks({ orgId: at.near.orgId })).tasks;
      expect(stateOf(await whenEnded(b.operator, there!.taskId, at.near.orgId))).toBe("CANCELED");
    });

    test("goes over a server between two, one hop more, and not over more than four", async () => {
      // B stands between: what the last server opens to B, B opens to A.
      await using last = await start(dialect);
      const beyond = await federated(b, last);
      const { askedAs: far, askingAs: near } = await peers(a, b, beyond.far.orgId);
      await grantedBy(b, beyond.far.orgId, near.orgId, beyond.contractId);
      await a.operator.peers.syncPeer({ peerId: far.peerId });
      const asking = await a.org();
      await grantedBy(a, far.orgId, asking.orgId, beyond.contractId);
      const { task } = await asking.admin.gateway.submitTask({ targetOrgId: far.orgId, contractId: beyond.contractId });
      expect(stateOf(task)).toBe("COMPLETED");
      const { traceId } = task!;
      expect(kindsOf(await eventsOf(beyond.doing.admin, traceId))).toContain("COMPLETED");
      const hops = async (world: World, orgId: string) =>
        (await world.server.app.db.query.one<{ hops: number }>(
          sql`select hops from federation_peer_call where org_id = ${orgId} order by create_ms desc, call_id desc limit 1`,
        ))!.hops;
      expect([await hops(b, near.orgId), await hops(last, beyond.near.orgId)]).toEqual([1, 2]);
      // What has gone over four already goes no further.
      const hand = await handMade(b);
      await grantedBy(b, beyond.far.orgId, hand.orgId, beyond.contractId);
      const body = hand.call(unique("call"), beyond.far.orgId, beyond.contractId);
      const { reply } = await post(b.url, hand.write({ envelope: { body, hops: 4 } }));
      expect(reply!.body).toMatchObject({ case: "result", value: { state: TaskState.FAILED } });
      const { tasks } = await last.operator.bus.listTasks({ orgId: beyond.near.orgId });
      expect(tasks).toHaveLength(1);
      // Nor does an agent take it further that asks for it by itself.
      const between = await b.org();
      const asked = await contract(between);
      const { as: asker } = await between.agent({
        ...{ capabilities: [asked], endpoint: scripted, trustTier: TrustTier.INTERNAL_RESTRICTED },
      });
      await grantedBy(b, between.orgId, hand.orgId, asked);
      await grantedBy(b, beyond.far.orgId, between.orgId, beyond.contractId);
      const onward = { targetOrgId: beyond.far.orgId, contractId: beyond.contractId };
      work = async (_endpoint, { traceparent }) => {
        const passedOn = await asker.gateway.submitTask(onward, { headers: { traceparent } });
        return { output: stateOf(passedOn.task), usage: nothing };
      };
      const spanOf = (traceId: string) => `00-${traceId}-${randomBytes(8).toString("hex")}-01`;
      const newTrace = () => randomBytes(16).toString("hex");
      const outcome = async (hops: number, traceId = newTrace()) => {
        const traceparent = spanOf(traceId);
        const body = hand.call(unique("call"), between.orgId, asked);
        const { reply } = await post(b.url, hand.write({ envelope: { body, hops, traceparent } }));
        return new TextDecoder().decode((reply!.body.value as PeerResult).outputJson);
      };
      expect([await outcome(3), await hops(last, beyond.near.orgId)]).toEqual(['"COMPLETED"', 4]);
      expect(await outcome(4)).toBe('"FAILED"');
      expect((await last.operator.bus.listTasks({ orgId: beyond.near.orgId })).tasks).toHaveLength(2);
      // What else is done in the trace does not count: neither what has ended nor, for an agent that asks below its task's span, what is under way.
      const passOn = work;
      const passOnAsOwn: Adapter = (endpoint, assignment, signal) =>
        passOn(endpoint, { ...assignment, traceparent: spanOf(assignment.traceparent.split("-")[1]!) }, signal);
      const trace = newTrace();
      expect(await outcome(4, trace)).toBe('"FAILED"');
      for (const agent of [passOn, passOnAsOwn]) {
        work = agent;
        expect([await outcome(1, trace), await hops(last, beyond.near.orgId)]).toEqual(['"COMPLETED"', 2]);
      }
      const { promise: begun, resolve: begin } = Promise.withResolvers<void>();
      const { promise: over, resolve: end } = Promise.withResolvers<void>();
      work = async () => {
        begin();
        await over;
        return { output: "far", usage: nothing };
      };
      const farthest = outcome(4, trace);
      await begun;
      work = passOn;
      expect([await outcome(1, trace), await hops(last, beyond.near.orgId)]).toEqual(['"COMPLETED"', 2]);
      work = passOnAsOwn;
      expect(await outcome(1, trace)).toBe('"FAILED"');
      end();
      expect(await farthest).toBe('"far"');
      // A circle in which everybody pretends to begin comes to an end as well.
      await b.server.app.db.tx((tx) =>
        tx.run(sql`
          insert into federation_peer_call (org_id, call_id, peer_id, request_sha256, target_org_id, task_id, hops, trace_id, create_ms)
          select c.org_id, 'copy ' || n.i, c.peer_id, '', c.target_org_id, '', 1, c.trace_id, c.create_ms from federation_peer_call c cross join (
            with recursive n(i) as (select 1 union all select i + 1 from n where i < 10000) select i from n) n
          where c.org_id = ${hand.orgId} and c.trace_id = ${trace} and c.hops = 1 and n.i <= 10000 and c.call_id = (
            select min(call_id) from federation_peer_call where org_id = ${hand.orgId} and trace_id = ${trace} and hops = 1)`),
      );
      const again = (traceId: string) => {
        const body = hand.call(unique("call"), between.orgId, asked);
        return post(b.url, hand.write({ envelope: { body, traceparent: spanOf(traceId) } }));
      };
      expect((await again(trace)).reason).toBe("QUOTA_EXCEEDED");
      expect((await again(newTrace())).status).toBe(200);
    });
  });
});

describe("two server processes", () => {
  const main = fileURLToPath(new URL("../src/main.ts", import.meta.url));
  const operatorKey = "kR7w2Qz9XvB4nT6mLp3sYf8hJd5gCa1e";
  const masterKey = randomBytes(32).toString("base64");
  const env = { MOLTWIRE_OPERATOR_KEY: operatorKey, MOLTWIRE_EGRESS_ALLOW: "127.0.0.1" };
  const serverAt = (folder: string, port: string, more: Record<string, string> = {}) =>
    serverProcess(main, ["--data", folder, "--port", port, "--rate-limit", "0", "--log-level", "silent"], {
      ...env,
      ...more,
    });

  test("have one trace, and go on federating after one of them was killed, whether they encrypt at rest or not", async () => {
    await using placeA = await storage("sqlite");
    await using placeB = await storage("sqlite");
    await using agent = await httpAgent();
    await using asking = await serverAt(placeA.folder, "0");
    let doing = await serverAt(placeB.folder, "0", { MOLTWIRE_MASTER_KEY: masterKey });
    try {
      const site = ({ url }: { readonly url: string }) => ({
        url,
        operator: connectClients({ url, key: operatorKey }),
      });
      const orgOf = async (url: string, name: string) =>
        (await clientsAt(url, operatorKey).organizations.createOrganization({ name })).organization!.orgId;
      const [askingOrgId, doingOrgId] = [await orgOf(asking.url, "asking"), await orgOf(doing.url, "doing")];
      const contractId = "research/search";
      const there = clientsAt(doing.url, operatorKey);
      await there.contracts.registerContract({ orgId: doingOrgId, contractId, version: "1.0.0" });
      const endpoint = httpEndpoint(agent.url);
      await there.agents.registerAgent({ orgId: doingOrgId, name: "worker", capabilities: [contractId], endpoint });
      const { targetOrgId } = await federate(site(asking), site(doing), { askingOrgId, doingOrgId, contractId });
      // The organisation's own administrator: what comes out of its tasks is kept from the operator.
      const key = { orgId: askingOrgId, role: Role.ORG };
      const { secret } = await clientsAt(asking.url, operatorKey).keys.createApiKey(key);
      const here = clientsAt(asking.url, secret);
      const ask = async (input: string) =>
        (await here.gateway.submitTask({ targetOrgId, contractId, input: value(input) })).task!;
      const task = await ask("first");
      expect([stateOf(task), json(task.output)]).toEqual(["COMPLETED", "first"]);
      expect(kindsOf(await eventsOf(there, task.traceId, doingOrgId))).toContain("COMPLETED");
      await doing.kill();
      expect(reasonOf(await ask("nobody is there"))).toBe("AGENT_UNREACHABLE");
      doing = await serverAt(placeB.folder, new URL(doing.url).port, { MOLTWIRE_MASTER_KEY: masterKey });
      expect(json((await ask("again")).output)).toBe("again");
      expect(agent.calls).toHaveLength(2);
    } finally {
      await doing.kill();
    }
  });
});
