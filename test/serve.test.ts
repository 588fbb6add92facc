import { describe, expect, test } from "vitest";
import { contract, eventsOf, json, kindsOf, stateOf, submit, whenEnded } from "./bus-fixtures/bus.ts";
import { puller, respond, serving } from "./bus-fixtures/instance.ts";
import { dialects, start } from "./harness.ts";

describe.each(dialects)("an agent that pulls, on %s", (dialect) => {
  test("has its tasks delivered, answers them, and its caller has the answer", async () => {
    await using world = await start(dialect);
    const org = await world.org();
    const contractId = await contract(org);
    const agent = await puller(org, contractId);
    const blocked = submit(org.admin, contractId, { input: { n: 1 } });
    await using one = serving(agent.as);
    const delivery = await one.delivery(0);
    expect(await respond(agent.as, delivery, { n: 2 })).toMatchObject({ state: 4 });
    const task = await blocked;
    expect([stateOf(task), json(task.output), task.attempts, task.targetAgentId]).toEqual([
      "COMPLETED",
      { n: 2 },
      1,
      agent.agentId,
    ]);
    expect(kindsOf(await eventsOf(org.admin, task.traceId)).slice(4)).toEqual([
      "ACCEPTED",
      "DISPATCHED",
      "DELIVERED",
      "ANSWERED",
      "OUTPUT_CHECKED",
      "COMPLETED",
    ]);
  });
});
