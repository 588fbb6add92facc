/** A grant that is revoked at one of two server processes on one database: what is under way ends at the other. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { keyDigest } from "../src/federation/key-text.ts";
import { reasonOf, stateOf, whenEnded } from "./bus-fixtures/bus.ts";
import { delta, listening } from "./bus-fixtures/chat-agent.ts";
import { pullEndpoint, respond, serving } from "./bus-fixtures/instance.ts";
import { type ServerProcess, serverProcess } from "./bus-fixtures/process.ts";
import { storage } from "./bus-fixtures/storage.ts";
import { told } from "./bus-fixtures/watch.ts";
import { type Across, across, granted } from "./federation-fixtures/across.ts";
import {
  type Clients,
  clientsAt,
  dialects,
  eventually,
  newOrg,
  type Org,
  refusal,
  unique,
  type World,
} from "./harness.ts";

const operatorKey = "gateway-replicas-0123456789-abcdefghijklmnopqrstuvwxyz";
const program = new URL("bus-fixtures/server.ts", import.meta.url).pathname;
const soon = { returnImmediately: true } as const;
const looking = `@approval("a human looks")\npermit (principal, action == Action::"invoke", resource) when { context.origin == "gateway" };`;

describe.runIf(dialects.includes("postgres"))("two server processes on one PostgreSQL database", () => {
  let place: Awaited<ReturnType<typeof storage>>;
  let here: ServerProcess;
  let there: ServerProcess;
  beforeAll(async () => {
    place = await storage("postgres");
    const options = JSON.stringify({ ...place.options, operatorKeyDigest: keyDigest(operatorKey) });
    here = await serverProcess(program, [options]);
    there = await serverProcess(program, [options]);
  });
  afterAll(async () => {
    await here?.[Symbol.asyncDispose]();
    await there?.[Symbol.asyncDispose]();
    await place[Symbol.asyncDispose]();
  });

  /** Organisations whose clients speak with the first process. */
  const orgHere = (): Promise<Org> =>
    newOrg(clientsAt(here.url, operatorKey), (key) => clientsAt(here.url, key), unique("org"));
  const scene = async (init: Parameters<typeof across>[1] = {}): Promise<Across> =>
    across(undefined as unknown as World, { ...init, doing: await orgHere(), asking: await orgHere() });
  const thereAs = (key: string): Clients => clientsAt(there.url, key);

  /**
   * Revokes the grant at the second process, and waits until the watchers at both have been told that the task has ended. That this is within a second is shown where
   * a clock can be moved.
   */
  async function revoke(at: Across, taskId: string): Promise<void> {
    const watch = async (by: Clients) => {
      const seen: string[] = [];
      for await (const message of by.bus.watchTask({ taskId })) seen.push(told(message));
      return seen.at(-1);
    };
    const watching = [at.asker.as, thereAs(at.asker.key)].map(watch);
    await thereAs(at.doing.adminKey).grants.revokeGrant({ grantId: at.grantId });
    expect((await refusal(at.go())).reason).toBe("NOT_FOUND"); // the next request, at the other process
    expect(await Promise.all(watching)).toEqual(["task REJECTED", "task REJECTED"]);
    const { task } = await at.asker.as.bus.getTask({ taskId });
    expect([stateOf(task), reasonOf(task)]).toEqual(["REJECTED", "GRANT_NOT_ACTIVE"]);
  }

  test("a grant that is suspended at one is suspended at the other, and in force at both once it is resumed", async () => {
    const at = await scene({ agent: { endpoint: pullEndpoint } });
    const { grantId } = at;
    const goThere = () => at.go({ ...soon, by: thereAs(at.asker.key) });
    const open = [await at.go(soon), await goThere()];
    await thereAs(at.doing.adminKey).grants.suspendGrant({ grantId });
    for (const go of [() => at.go(soon), goThere]) expect((await refusal(go())).reason).toBe("NOT_FOUND");
    for (const { taskId } of open) {
      const task = await whenEnded(at.asker.as, taskId);
      expect([stateOf(task), reasonOf(task), task.error!.metadata.state]).toEqual([
        ...["REJECTED", "GRANT_NOT_ACTIVE", "SUSPENDED"],
      ]);
    }
    await at.doing.admin.grants.resumeGrant({ grantId });
    await using instance = serving(at.worker.as);
    const next = [await at.go(soon), await goThere()];
    for (const n of [0, 1]) await respond(at.worker.as, await instance.delivery(n));
    for (const { taskId } of next) expect(stateOf(await whenEnded(at.asker.as, taskId))).toBe("COMPLETED");
  });

  test("in the middle of a stream: the agent is hung up on and the watchers are told", async () => {
    const hungUp = Promise.withResolvers<void>();
    await using agent = await listening((_request, response) => {
      response.on("close", () => hungUp.resolve());
      response.writeHead(200, { "content-type": "text/event-stream" }).write(delta("begun"));
    });
    const at = await scene({
      agent: {
        endpoint: { kind: { case: "openai", value: { baseUrl: `${agent.url}/v1`, model: "m", stream: true } } },
      },
    });
    const { taskId } = await at.go({ ...soon, input: "hello" });
    const leave = new AbortController();
    for await (const message of thereAs(at.asker.key).bus.watchTask({ taskId }, { signal: leave.signal }))
      if (told(message) === "chunk begun") break;
    leave.abort();
    await revoke(at, taskId);
    await hungUp.promise;
  });

  test("in the middle of a queue: what waits for an instance ends and is never handed out", async () => {
    const at = await scene({ agent: { endpoint: pullEndpoint } });
    const { taskId } = await at.go(soon);
    await revoke(at, taskId);
    await using instance = serving(at.worker.as);
    const next = await at.go({ ...soon, grantId: await granted(at.doing, at.asking, at.contractId) });
    expect((await instance.delivery(0)).task?.taskId).toBe(next.taskId);
  });

  test("in the hands of an instance: it is told, and its answer comes too late", async () => {
    const at = await scene({ agent: { endpoint: pullEndpoint } });
    await using instance = serving(at.worker.as);
    const { taskId } = await at.go(soon);
    const delivery = await instance.delivery(0);
    await revoke(at, taskId);
    await eventually(() => instance.revoked.includes(taskId));
    expect((await refusal(respond(at.worker.as, delivery))).reason).toBe("LEASE_LOST");
  });

  test.each(["asking", "doing"] as const)(
    "while it waits for an approval of the %s organisation: it ends, and nobody can approve it any more",
    async (side) => {
      const at = await scene();
      await at[side].admin.policies.putPolicy({ policyId: "look", cedarText: looking });
      const { taskId } = await at.go();
      const { approvals } = await at[side].admin.approvals.listApprovals({});
      await revoke(at, taskId);
      const { approvalId } = approvals[0]!;
      for (const by of [at[side].admin, thereAs(at[side].adminKey)])
        expect((await refusal(by.approvals.approve({ approvalId }))).reason).toBe("FAILED_PRECONDITION");
    },
  );
});
