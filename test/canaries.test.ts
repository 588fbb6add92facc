/** A thousand marked texts of one organisation, and every byte that another is answered which may have some of its work done. */
import { type DescMethod, fromJson, type JsonValue, type Message, toBinary } from "@bufbuild/protobuf";
import { ValueSchema } from "@bufbuild/protobuf/wkt";
import { ConnectError, type Interceptor } from "@connectrpc/connect";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { TrustTier } from "../gen/moltwire/bus/v1/agent_pb.ts";
import { services } from "../src/services.ts";
import { contract, echoEndpoint, eventsOf, httpEndpoint, submit, value, whenEnded } from "./bus-fixtures/bus.ts";
import { httpAgent } from "./bus-fixtures/http-agent.ts";
import { granted } from "./federation-fixtures/across.ts";
import { type Clients, dialects, type Org, refusal, start, type World } from "./harness.ts";
import { callRaw } from "./rpc-fixtures/raw.ts";
import { minimalRequest } from "./rpc-fixtures/requests.ts";

const marked = /cnry\d{4}x/;
const atLeast = 1_000;

/** Texts that are each other's like nowhere else. */
function canaries() {
  let count = 0;
  return { mark: () => `cnry${String(++count).padStart(4, "0")}x`, planted: () => count };
}

/** What was answered, as bytes, with what can be told from base64 in it. */
function ears() {
  const heard: string[] = [];
  const hear = (what: string, bytes: Uint8Array | string) => {
    const text = Buffer.from(bytes).toString("latin1");
    const hidden = (text.match(/[\w+/-]{16,}/g) ?? []).map((part) => Buffer.from(part, "base64").toString("latin1"));
    heard.push([what, text, ...hidden].join("\n"));
  };
  const headers = (of: Headers) => JSON.stringify([...of]);
  const listen: Interceptor = (next) => async (request) => {
    const { method } = request;
    const hearMessage = (message: Message) => hear(method.name, toBinary(method.output, message as never));
    const hearError = (error: unknown) => {
      const { rawMessage, details, metadata } = ConnectError.from(error);
      const inside = details.map((one) =>
        "value" in one && one.value instanceof Uint8Array
          ? Buffer.from(one.value).toString("latin1")
          : JSON.stringify(one),
      );
      hear(method.name, [rawMessage, headers(metadata), ...inside].join("\n"));
    };
    try {
      const response = await next(request);
      hear(method.name, headers(response.header));
      if (!response.stream) {
        hearMessage(response.message);
        hear(method.name, headers(response.trailer));
        return response;
      }
      const { message } = response;
      return {
        ...response,
        message: (async function* () {
          try {
            for await (const one of message) {
              hearMessage(one);
              yield one;
            }
          } catch (error) {
            hearError(error);
            throw error;
          }
        })(),
      };
    } catch (error) {
      hearError(error);
      throw error;
    }
  };
  return { heard, hear, listen };
}

describe.each(dialects)("%s", (dialect) => {
  let world: World;
  beforeAll(async () => {
    world = await start(dialect);
  });
  afterAll(() => world[Symbol.asyncDispose]());

  const times = async (count: number, work: (n: number) => Promise<unknown>) => {
    for (let n = 0; n < count; n++) await work(n);
  };

  /** Fills an organisation with marked texts of every kind. */
  async function plant(org: Org, mark: () => string): Promise<void> {
    const { admin } = org;
    await using broken = await httpAgent(({ answer }) => answer({ code: "internal", message: `${mark()} broke` }, 500));
    const names = () => ({
      name: `a${mark()}`,
      description: mark(),
      metadata: { [mark()]: mark() },
      allowedTools: [mark()],
    });
    await times(30, () => admin.agents.registerAgent({ ...names(), capabilities: [`c${mark()}`] }));
    const agent = await org.agent({ ...names(), trustTier: TrustTier.INTERNAL_TRUSTED });
    const capability = `d${mark()}`;
    await org.agent({ ...names(), capabilities: [capability], endpoint: echoEndpoint });
    const failing = `f${mark()}`;
    await org.agent({ ...names(), capabilities: [failing], endpoint: httpEndpoint(`${broken.url}/${mark()}`) });
    const init = () => ({ contractId: `k${mark()}`, description: mark(), inputSchema: { title: mark() } });
    await times(30, () => contract(org, { ...init(), capability: mark(), requiredTools: [mark()] }));
    const contractId = await contract(org, { ...init(), capability });
    const failingId = await contract(org, { ...init(), capability: failing });
    await times(25, () =>
      admin.policies.putPolicy({
        policyId: mark(),
        cedarText: `permit (principal, action == Action::"claim_job", resource == Queue::"${mark()}");`,
        description: mark(),
      }),
    );
    const wish = () => ({ input: { [mark()]: mark() }, labels: { [mark()]: mark() } });
    await times(30, () => submit(agent.as, contractId, wish()));
    await times(4, () => submit(agent.as, failingId, wish()));
    const payload = () => ({ kind: { case: "json", value: fromJson(ValueSchema, { [mark()]: mark() }) } }) as const;
    await times(20, () =>
      agent.as.memory.setEntry({
        write: { namespace: mark(), key: mark(), description: mark(), tags: [mark()], value: payload() },
      }),
    );
    await times(10, () =>
      agent.as.sharedMemory.publishSharedEntry({ write: { namespace: mark(), key: mark(), value: payload() } }),
    );
    const job = () => ({ queue: `${agent.agentId}/${mark()}`, payload: payload(), tags: { [mark()]: mark() } });
    await times(15, () => agent.as.queues.submitJobs({ jobs: [job()] }));
    await times(5, () =>
      agent.as.schedules.createSchedule({ settings: { name: mark(), timing: { cron: "0 0 1 1 *" }, job: job() } }),
    );
    await times(15, () =>
      agent.as.relay.send({
        to: { case: "toAgentId", value: agent.agentId },
        ...{ payload: payload(), label: mark(), threadId: mark(), headers: { [mark()]: mark() } },
      }),
    );
    await times(10, () => agent.as.relay.createChannel({ name: mark(), description: mark(), membersOnly: true }));
    await times(10, () => admin.namespaces.createNamespace({ name: mark(), description: mark() }));
    await times(10, () => admin.keys.createApiKey({ name: mark() }));
    await times(5, () =>
      agent.as.webhooks.createWebhook({
        ...{ eventTypes: ["message.received"], url: `http://127.0.0.1:9/${mark()}`, description: mark() },
      }),
    );
    const third = await world.org();
    await times(10, () =>
      admin.grants.createGrant({
        ...{ granteeOrgId: third.orgId, subject: { case: "capability", value: mark() } },
        terms: { purpose: mark(), allowedTools: [mark()] },
      }),
    );
    await agent.as.directory.updateProfile({
      change: { description: mark(), capabilities: [mark()] },
      updateMask: { paths: ["description", "capabilities"] },
    });
  }

  test("of a thousand texts of one organisation none is in any byte that the other is answered", async () => {
    const { mark, planted } = canaries();
    const { heard, hear, listen } = ears();
    const theirs = await world.org();
    const mine = await world.org();
    await plant(theirs, mark);

    // What is open: contracts without marks, done by marked agents under marked policies.
    await using agent = await httpAgent(({ task, answer }) => {
      const { how } = task.input as { how: string };
      if (how === "fail") answer({ code: "internal", message: `${mark()} broke`, details: [mark()] }, 500);
      else if (how === "break")
        return { output: { wrong: mark() }, usage: { model: mark(), inputTokens: 1, outputTokens: 1 } };
      else return { output: "done", usage: { model: mark(), inputTokens: 1, outputTokens: 1 } };
      return undefined;
    });
    const open = async (init: Parameters<typeof contract>[1] = {}) => {
      const id = await contract(theirs, { outputSchema: { type: "string" }, ...init });
      await theirs.agent({
        ...{ name: `w${mark()}`, description: mark(), capabilities: [id], allowedTools: init.requiredTools ?? [] },
        endpoint: httpEndpoint(`${agent.url}/${mark()}`),
      });
      await granted(theirs, mine, id);
      return id;
    };
    const tool = mark();
    const does = await open({ requiredTools: [tool], inputSchema: { type: "object", required: ["how"] } });
    const asks = await open({ approvalRequired: true });
    const barred = await open();
    await theirs.admin.policies.putPolicy({
      policyId: `p${mark()}`,
      cedarText: `@reason("${mark()}")\nforbid (principal, action == Action::"invoke", resource == Contract::"${barred}");`,
      description: mark(),
    });
    const asker = await mine.agent({ trustTier: TrustTier.INTERNAL_TRUSTED });
    const by = world.as(asker.key, "connect", [listen]);
    const admin = world.as(mine.adminKey, "connect", [listen]);

    const targetOrgId = theirs.orgId;
    const go = async (contractId: string, input: JsonValue, more: object = {}) =>
      (await by.gateway.submitTask({ targetOrgId, contractId, input: value(input), ...more })).task!;
    const done = [await go(does, { how: "do" }), await go(does, { how: "fail" }), await go(does, { how: "break" })];
    const idle = await theirs.agent({ name: `i${mark()}` });
    await refusal(go(does, {}));
    await refusal(go(barred, { how: "do" }));
    await refusal(go(does, { how: "do" }, { targetAgentId: idle.agentId }));
    await refusal(go("no-such-contract", {}));
    const waits = await go(asks, { how: "do" });
    const { approvals } = await theirs.admin.approvals.listApprovals({});
    await theirs.admin.approvals.deny({ approvalId: approvals[0]!.approvalId, note: mark() });
    done.push(await whenEnded(by, waits.taskId));
    const canceled = await go(asks, { how: "do" });
    await by.bus.cancelTask({ taskId: canceled.taskId });
    await world.settled();

    // All that there is to read of it.
    for (const as of [by, admin]) {
      for (const { taskId, traceId } of done) {
        await whenEnded(as, taskId);
        await eventsOf(as, traceId);
        await as.gateway.getStatus({ traceId });
        await as.costs.getTraceCosts({ traceId });
      }
      await pages((pageToken) => as.bus.listTasks({ pageSize: 1, pageToken }));
      await pages((pageToken) => as.gateway.listContracts({ pageSize: 1, pageToken }));
      await pages((pageToken) => as.deadLetters.listDeadLetters({ pageSize: 1, pageToken }));
      await pages((pageToken) => as.events.listEvents({ pageSize: 1, pageToken }));
      await pages((pageToken) => as.traces.listTraces({ pageSize: 1, pageToken }));
      await tail(as);
      for (const text of ["cnry", "broke", "w"]) await as.directory.searchAgents({ text, allOrganizations: true });
    }
    await pages((pageToken) => admin.policies.listDecisions({ pageSize: 1, pageToken }));
    await pages((pageToken) => admin.admin.listAuditEvents({ pageSize: 20, pageToken }));
    await pages((pageToken) => admin.grants.listGrants({ pageSize: 1, pageToken }));

    // Every other method, with nothing and with what is theirs.
    const their = {
      ...{ orgId: theirs.orgId, targetOrgId: theirs.orgId, counterpartyOrgId: theirs.orgId },
      ...{ taskId: done[0]!.taskId, traceId: done[0]!.traceId, contractId: does },
      agentId: (await theirs.admin.agents.listAgents({})).agents[0]!.agentId,
    };
    for (const method of services.flatMap((service) => service.methods)) {
      if (method.methodKind === "bidi_streaming") continue;
      const own = fieldsOf(method).filter((name) => name in their) as (keyof typeof their)[];
      for (const fields of [{}, ...own.map((name) => ({ [name]: their[name] }))])
        for (const key of [mine.adminKey, asker.key]) {
          const headers = { authorization: `Bearer ${key}` };
          hear(method.name, (await callRaw(world.url, method, minimalRequest(method.input, fields), headers)).readable);
        }
    }
    const sung = heard
      .filter((text) => marked.test(text))
      .map((text) => `${text.slice(0, 200)} … ${marked.exec(text)![0]}`);
    expect(sung).toEqual([]);
    expect(heard.length).toBeGreaterThan(500);

    // They sing where they may be heard.
    const loud = ears();
    const owner = world.as(theirs.adminKey, "connect", [loud.listen]);
    for (const { traceId } of done) await eventsOf(owner, traceId);
    await owner.agents.listAgents({});
    expect(loud.heard.filter((text) => marked.test(text)).length).toBeGreaterThan(3);
    expect(planted()).toBeGreaterThan(atLeast);
  }, 120_000);

  /** The names of the fields that are texts. */
  const fieldsOf = (method: DescMethod): string[] =>
    method.input.fields
      .filter(({ fieldKind, oneof }) => fieldKind === "scalar" && !oneof)
      .map(({ localName }) => localName);

  async function pages(read: (pageToken: string) => Promise<{ readonly nextPageToken: string }>): Promise<void> {
    for (let pageToken = ""; ; ) {
      ({ nextPageToken: pageToken } = await read(pageToken));
      if (!pageToken) return;
    }
  }

  /** Feeds from the start, until they are silent. */
  async function tail(as: Clients): Promise<void> {
    const feeds = [
      (options: { signal: AbortSignal }) => as.traces.tailTraces({ fromStart: true }, options),
      (options: { signal: AbortSignal }) => as.events.watchEvents({ fromStart: true }, options),
    ];
    for (const feed of feeds) {
      const leave = new AbortController();
      const over = setTimeout(() => leave.abort(), 500);
      await (async () => {
        for await (const _ of feed({ signal: leave.signal }));
      })().catch((error: unknown) => {
        if (!leave.signal.aborted) throw error;
      });
      clearTimeout(over);
    }
  }
});
