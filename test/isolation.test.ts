import { randomBytes } from "node:crypto";
import { type DescMethod, fromJson, getOption } from "@bufbuild/protobuf";
import { durationFromMs, ValueSchema } from "@bufbuild/protobuf/wkt";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { access, Kind, Role } from "../gen/moltwire/api/v1/access_pb.ts";
import { BusService } from "../gen/moltwire/bus/v1/bus_service_pb.ts";
import { TraceService } from "../gen/moltwire/bus/v1/trace_service_pb.ts";
import { Outcome } from "../gen/moltwire/directory/v1/collaboration_pb.ts";
import { BillingPeriod } from "../gen/moltwire/exchange/v1/listing_pb.ts";
import { ReviewVerdict } from "../gen/moltwire/exchange/v1/marketplace_pb.ts";
import { GatewayService } from "../gen/moltwire/federation/v1/gateway_service_pb.ts";
import { Pattern } from "../gen/moltwire/lab/v1/scenario_pb.ts";
import { EventService } from "../gen/moltwire/ops/v1/event_service_pb.ts";
import { QueueService } from "../gen/moltwire/queue/v1/queue_service_pb.ts";
import { sql } from "../src/db/db.ts";
import { services } from "../src/services.ts";
import { contract, httpEndpoint } from "./bus-fixtures/bus.ts";
import { deadUrl } from "./bus-fixtures/http-agent.ts";
import { type Clients, dialects, type Org, type OrgAgent, start, unique, type World } from "./harness.ts";
import { addContract } from "./rpc-fixtures/contract.ts";
import { callRaw, type RawAnswer } from "./rpc-fixtures/raw.ts";
import { minimalRequest } from "./rpc-fixtures/requests.ts";

const methods = services.flatMap((service) => service.methods);
const nameOf = (method: DescMethod) => `${method.parent.typeName}/${method.name}`;
const methodNamed = (name: string) => methods.find((method) => method.name === name && method.parent.typeName !== "")!;

/** Every text that an organisation writes holds this, and nobody else's answers may. */
const canary = "canary7f3a";
/** The traces of the calls that are compared with one another. */
const traceIds = { foreign: "5".repeat(32), random: "6".repeat(32) };

/** What there is of an organisation, by the names of the fields that hold it. */
type Belongings = Readonly<Record<string, string>>;

type Party = {
  readonly org: Org;
  readonly worker: OrgAgent;
  readonly caller: OrgAgent;
  readonly contractId: string;
  readonly belongings: Belongings;
};

/** An organisation with something of everything, every text in it marked. */
async function party(world: World, mark: string): Promise<Party> {
  const org = await world.org(unique(`${mark || "org"}-name`));
  const capability = unique(`${mark}can`);
  const about = { description: `${mark} about`, metadata: { note: `${mark} note` }, allowedTools: [`${mark}tool`] };
  const endpoint = { kind: { case: "echo", value: {} } } as const;
  const worker = await org.agent({ name: unique(`${mark}worker`), capabilities: [capability], endpoint, ...about });
  const caller = await org.agent({ name: unique(`${mark}caller`), ...about });
  await org.admin.keys.createApiKey({ name: `${mark} key` });
  const cedarText = `permit (principal, action == Action::"claim_job", resource == Queue::"${mark}queue");`;
  const policyId = unique(`${mark}policy`);
  await org.admin.policies.putPolicy({ policyId, cedarText, description: `${mark} policy` });
  const { apiKeys } = await org.admin.keys.listApiKeys({ agentId: caller.agentId });
  const contractId = unique("contract");
  await addContract(world, org.orgId, { contractId, capability, description: `${mark} does it` });
  const { task } = await submit(
    caller.as,
    contractId,
    { [`${mark}key`]: `${mark}value` },
    { [`${mark}label`]: `${mark}` },
  );
  await submit(caller.as, contractId, `${mark} again`, {});
  const failing = unique("failing");
  await org.agent({ name: unique(`${mark}gone`), capabilities: [failing], endpoint: httpEndpoint(await deadUrl()) });
  await addContract(world, org.orgId, { contractId: failing, capability: failing });
  await submit(caller.as, failing, `${mark} failed`, { [`${mark}label`]: mark });
  const { deadLetters } = await org.admin.deadLetters.listDeadLetters({});
  const namespace = unique("namespace");
  const entry = { namespace, key: unique("key"), description: `${mark} entry`, tags: [`${mark}tag`] };
  const write = { ...entry, value: { kind: { case: "data", value: Buffer.from(`${mark} value`) } } } as const;
  await caller.as.memory.setEntry({ write });
  await caller.as.sharedMemory.publishSharedEntry({ write });
  // Private, so that it is none of a sibling's either.
  const payload = { kind: { case: "json", value: fromJson(ValueSchema, `${mark} payload`) } } as const;
  const queued = { queue: `${caller.agentId}/${mark}queue`, payload, tags: { [`${mark}tag`]: mark } };
  const { results } = await caller.as.queues.submitJobs({ jobs: [queued, queued] });
  const settings = { name: `${mark}schedule`, timing: { cron: "0 0 1 1 *" }, job: queued };
  const { schedule } = await caller.as.schedules.createSchedule({ settings });
  await caller.as.schedules.createSchedule({ settings });
  await caller.as.relay.send({
    to: { case: "toAgentId", value: caller.agentId },
    ...{ payload, label: `${mark}label`, threadId: `${mark}thread`, headers: { [`${mark}header`]: mark } },
  });
  const channel = unique(`${mark}channel`);
  await caller.as.relay.createChannel({ name: channel, description: `${mark} channel`, membersOnly: true });
  await caller.as.relay.createConsumerGroup({ channel, name: `${mark}group` });
  const { messageId } = await caller.as.relay.send({ to: { case: "toChannel", value: channel }, payload });
  const offer = {
    title: `${mark} title`,
    description: `${mark} offer`,
    category: "c",
    contractId,
    pricing: { requestMicros: 1n },
  };
  const { listingId } = (await org.admin.catalog.publishListing({ offer })).listing!;
  const buyer = await world.org();
  await buyer.admin.catalog.invokeListing({ listingId, input: fromJson(ValueSchema, "bought") });
  const { review } = await buyer.admin.reviews.createReview({ listingId, rating: 5, text: "good" });
  await org.admin.catalog.unpublishListing({ listingId });
  const plans = [
    { planId: "daily", period: BillingPeriod.DAY, priceMicros: 1n, includedRequests: 1n, overageMicros: 1n },
  ];
  const sold = { title: "sold", description: "sold", category: "c", pricing: { requestMicros: 1n }, plans };
  const { listing: other } = await buyer.admin.catalog.publishListing({
    offer: { ...sold, contractId: await addContract(world, buyer.orgId, { contractId: unique("sold") }) },
  });
  const { subscription } = await org.admin.subscriptions.subscribe({ listingId: other!.listingId, planId: "daily" });
  const looked = await contract(org, { capability, approvalRequired: true });
  const { task: waiting } = await submit((await org.agent()).as, looked, `${mark} waits`, {});
  const wished = {
    eventTypes: ["message.received"],
    url: `http://127.0.0.1:9/${mark}hook`,
    description: `${mark} hook`,
  };
  const { webhook } = await caller.as.webhooks.createWebhook(wished);
  const { webhookId } = webhook!;
  const names = { namespace: unique(`${mark}family`), granteeOrgId: (await world.org()).orgId };
  await org.admin.namespaces.createNamespace({ name: names.namespace, description: `${mark} family` });
  const { grant } = await org.admin.grants.createGrant({
    ...{ granteeOrgId: names.granteeOrgId, subject: { case: "namespace", value: names.namespace } },
    terms: { purpose: `${mark} purpose`, allowedTools: [`${mark}tool`] },
  });
  await org.admin.grants.createGrant({
    granteeOrgId: names.granteeOrgId,
    subject: { case: "capability", value: `${mark}can` },
  });
  const { delivery } = await caller.as.webhooks.testWebhook({ webhookId });
  await caller.as.directory.updateProfile({
    change: { description: `${mark} profile`, capabilities: [`${mark}skill`] },
    updateMask: { paths: ["description", "capabilities"] },
  });
  await caller.as.directory.logCollaboration({
    ...{ partnerAgentId: worker.agentId, taskType: `${mark} type`, outcome: Outcome.SUCCESS, rating: 5 },
    evidence: { case: "taskId", value: task!.taskId },
  });
  await org.admin.billing.transferCredits({
    toAgentId: caller.agentId,
    amountMicros: 2n,
    reference: `${mark}reference`,
  });
  await org.admin.billing.transferCredits({
    toAgentId: caller.agentId,
    amountMicros: 1n,
    reference: `${mark}reference`,
  });
  // What a task tells is for everybody; its results are not.
  const posted = { title: "to sum up", category: "writing", rewardMicros: 1n, disputeWindow: durationFromMs(1_000) };
  const seller = await org.agent();
  await org.admin.billing.transferCredits({ toAgentId: seller.agentId, amountMicros: 1n });
  const { taskId: offered } = (await seller.as.market.postTask(posted)).task!;
  await worker.as.market.claimTask({ taskId: offered });
  const json = fromJson(ValueSchema, `${mark} result`);
  await worker.as.market.deliverTask({ taskId: offered, result: { kind: { case: "json", value: json } } });
  const rejected = { taskId: offered, verdict: ReviewVerdict.REJECTED, reason: `${mark} reason` };
  await seller.as.market.reviewTask(rejected);
  await worker.as.market.disputeTask({ taskId: offered, reason: `${mark} dispute` });
  const { invite } = await org.admin.directory.createInvite({});
  const wish = { pattern: Pattern.CONSENSUS, agentCount: 2, name: `${mark}scenario` };
  const { scenario } = await org.admin.scenarios.createScenario(wish);
  const belongings = {
    listing_id: listingId,
    scenario_id: scenario!.scenarioId,
    invite_id: invite!.inviteId,
    account_id: caller.agentId,
    from_agent_id: caller.agentId,
    to_agent_id: worker.agentId,
    grant_id: grant!.grantId,
    counterparty_org_id: names.granteeOrgId,
    webhook_id: webhookId,
    event_id: delivery!.eventId,
    channel,
    member_agent_id: caller.agentId,
    message_id: messageId,
    schedule_id: schedule!.scheduleId,
    namespace,
    key: entry.key,
    job_id: results[0]!.job!.jobId,
    org_id: org.orgId,
    agent_id: caller.agentId,
    target_agent_id: worker.agentId,
    target_org_id: org.orgId,
    partner_agent_id: worker.agentId,
    caller_agent_id: caller.agentId,
    key_id: apiKeys[0]!.keyId,
    task_id: task!.taskId,
    trace_id: task!.traceId,
    contract_id: contractId,
    policy_id: policyId,
    dead_letter_id: deadLetters[0]!.deadLetterId,
    subscription_id: subscription!.subscriptionId,
    review_id: review!.reviewId,
    approval_id: waiting!.approvalId,
  };
  return { org, worker, caller, contractId, belongings };
}

const submit = (
  as: Clients,
  contractId: string,
  input: Parameters<typeof fromJson<typeof ValueSchema>>[1],
  labels: Record<string, string>,
) => as.bus.submitTask({ contractId, contractVersion: "1.0.0", input: fromJson(ValueSchema, input), labels });

/** Whether the field gives a name to something new: one that another organisation took is free. */
const isNew = (method: DescMethod, field: string): boolean =>
  (method.name === "RegisterContract" && field === "contract_id") ||
  (method.name === "PutPolicy" && field === "policy_id");

const snakeCased = (value: object): Record<string, unknown> =>
  Object.fromEntries(
    Object.entries(value).map(([name, each]) => [name.replaceAll(/[A-Z]/g, (one) => `_${one.toLowerCase()}`), each]),
  );

/** An id of the same form that nothing has. */
const randomLike = (id: string): string =>
  id.replace(/[0-9a-f]+$/, (digits) => randomBytes(digits.length).toString("hex").slice(0, digits.length));

describe.each(dialects)("%s", (dialect) => {
  let world: World;
  let theirs: Party;
  let mine: Party;
  /** All that was answered to one who must not see it. */
  const answers: string[] = [];
  beforeAll(async () => {
    world = await start(dialect);
    theirs = await party(world, canary);
    mine = await party(world, "");
    await unfitting();
  });
  afterAll(() => world[Symbol.asyncDispose]());

  /** Grants of theirs to mine that open nothing: one that was not accepted, one that is held, one that has ended, one on something else. */
  async function unfitting(): Promise<void> {
    const [from, to] = [theirs.org.admin.grants, mine.org.admin.grants];
    const propose = async (value: string, kind: "contractId" | "capability" = "contractId") =>
      (await from.createGrant({ granteeOrgId: mine.org.orgId, subject: { case: kind, value } })).grant!.grantId;
    await propose(theirs.contractId);
    const grantIds = [
      await propose(theirs.contractId),
      await propose(theirs.contractId),
      await propose("else", "capability"),
    ];
    for (const grantId of grantIds) await to.acceptGrant({ grantId });
    await from.suspendGrant({ grantId: grantIds[0]! });
    await from.revokeGrant({ grantId: grantIds[1]! });
  }

  async function call(
    method: DescMethod,
    key: string,
    fields: Record<string, unknown>,
    traceId = traceIds.foreign,
  ): Promise<RawAnswer> {
    const request = minimalRequest(method.input, fields);
    const traceparent = `00-${traceId}-${"1".repeat(16)}-00`;
    const answer = await callRaw(world.url, method, request, { authorization: `Bearer ${key}`, traceparent });
    answers.push(answer.readable);
    return answer;
  }

  /** The answer, with the time of a checkpoint and the id that was named made alike. A whole second is written shorter than other times, so that a length with times in it tells nothing. */
  const comparable = (answer: RawAnswer, id: string) => {
    const named = answer.readable.replaceAll(id, "<id>").replaceAll(traceIds.random, traceIds.foreign);
    const alike = named.replaceAll(/"(checkpoint|startTime|updateTime)":"[^"]*"/g, '"$1":"<time>"');
    return alike === named ? named : alike.replace(/\["content-length","\d+"\]/, '["content-length","<length>"]');
  };

  /** Fields without which the id under test would not be looked at. */
  const companions = (method: DescMethod, contractId = mine.contractId): Record<string, unknown> => {
    if (method === GatewayService.method.submitTask)
      return { targetOrgId: theirs.org.orgId, contractId: theirs.contractId, contractVersion: "1.0.0" };
    return method === methodNamed("SubmitTask") ? { contractId, contractVersion: "1.0.0" } : {};
  };

  /** Every field of every method that names something, with one caller. */
  async function compare(
    belongings: Belongings,
    key: string,
    contractId = mine.contractId,
    isMine: (field: string) => boolean = () => false,
  ): Promise<string[]> {
    const differences: string[] = [];
    // One random id for each: what was asked for before may be told again.
    const randomIds = Object.fromEntries(Object.entries(belongings).map(([field, id]) => [field, randomLike(id)]));
    for (const method of methods) {
      for (const field of method.input.fields) {
        const id = belongings[field.name];
        if (id === undefined || isMine(field.name) || isNew(method, field.name)) continue;
        const other = randomIds[field.name]!;
        const naming = ({ oneof, localName }: typeof field, value: string) =>
          oneof ? { [oneof.localName]: { case: localName, value } } : { [localName]: value };
        const [foreign, random] = [
          await call(method, key, { ...companions(method, contractId), ...naming(field, id) }),
          await call(method, key, { ...companions(method, contractId), ...naming(field, other) }, traceIds.random),
        ];
        if (comparable(foreign, id) !== comparable(random, other))
          differences.push(
            `${nameOf(method)} ${field.name}:\n${comparable(foreign, id)}\n${comparable(random, other)}`,
          );
      }
    }
    return differences;
  }

  test("the comparison finds what it looks for: one's own ids are answered otherwise than random ones", async () => {
    const decoy = await party(world, "");
    const differences = await compare(decoy.belongings, decoy.org.adminKey, decoy.contractId);
    answers.length = 0;
    const found = differences.map((text) => text.split(":", 1)[0]);
    for (const name of [
      "AgentService/GetAgent agent_id",
      "BusService/GetTask task_id",
      "BusService/WatchTask task_id",
      "TraceService/GetTrace trace_id",
      "ApiKeyService/GetApiKey key_id",
      "ApiKeyService/RotateApiKey key_id",
      "BusService/SubmitTask target_agent_id",
      "DeadLetterService/GetDeadLetter dead_letter_id",
      "DeadLetterService/RetryDeadLetter dead_letter_id",
      "DeadLetterService/ListDeadLetters caller_agent_id",
      "QueueService/GetJob job_id",
      "QueueService/CancelJob job_id",
      "RelayService/GetMessage message_id",
      "RelayService/GetChannel channel",
      "RelayService/Subscribe channel",
      "BillingService/GetBalance account_id",
      "ScenarioService/GetScenarioResults scenario_id",
      "ScenarioService/RunScenario scenario_id",
      "BillingService/TransferCredits from_agent_id",
      "RelayService/Send to_agent_id",
      "DirectoryService/RevokeInvite invite_id",
      "CatalogService/GetListing listing_id",
      "SubscriptionService/CancelSubscription subscription_id",
      "ReviewService/RespondToReview review_id",
      "ApprovalService/GetApproval approval_id",
      "ApprovalService/Deny approval_id",
      "GrantService/GetGrant grant_id",
      "GrantService/RevokeGrant grant_id",
      "GrantService/ListGrants counterparty_org_id",
    ])
      expect(found).toContainEqual(expect.stringContaining(name));
  });

  test.each(["administrator", "agent"])(
    "to another organisation's %s a foreign id is answered byte for byte like a random one",
    async (who) => {
      const key = who === "agent" ? mine.worker.key : mine.org.adminKey;
      expect(await compare(theirs.belongings, key)).toEqual([]);
    },
  );

  describe("to an organisation", () => {
    /** What becomes of a grant of theirs on their contract. */
    const fates = {
      "that was offered one": async () => {},
      "whose grant is held": async (grantId: string) => void (await theirs.org.admin.grants.suspendGrant({ grantId })),
      "whose grant was revoked": async (grantId: string) =>
        void (await theirs.org.admin.grants.revokeGrant({ grantId })),
      "whose grant has run out": async (grantId: string) => {
        const { orgId } = theirs.org;
        await world.server.app.db.tx((tx) =>
          tx.run(
            sql`update federation_grant set expire_ms = ${Date.now()} where org_id = ${orgId} and grant_id = ${grantId}`,
          ),
        );
      },
      "whose grant is on another capability": async () => {},
      "whose grant is the right one": async () => {},
    };
    type Fate = keyof typeof fates;

    /** An administrator's key of such an organisation, and a contract of it. */
    async function grantee(fate: Fate): Promise<{ readonly key: string; readonly contractId: string }> {
      const org = await world.org();
      const contractId = await addContract(world, org.orgId, { contractId: unique("contract") });
      const value = fate === "whose grant is on another capability" ? "else" : theirs.contractId;
      const kind = value === "else" ? "capability" : "contractId";
      const wished = { granteeOrgId: org.orgId, subject: { case: kind, value } } as const;
      const { grantId } = (await theirs.org.admin.grants.createGrant(wished)).grant!;
      if (fate !== "that was offered one") await org.admin.grants.acceptGrant({ grantId });
      await fates[fate](grantId);
      return { key: org.adminKey, contractId };
    }

    test.each((Object.keys(fates) as Fate[]).slice(0, -1))(
      "%s every foreign id is answered byte for byte like a random one",
      async (fate) => {
        const { key, contractId } = await grantee(fate);
        expect(await compare(theirs.belongings, key, contractId)).toEqual([]);
      },
    );

    test("whose grant is the right one what the grant opens is answered otherwise, and nothing else", async () => {
      const { key, contractId } = await grantee("whose grant is the right one");
      const before = answers.length;
      const differences = await compare(theirs.belongings, key, contractId);
      answers.length = before; // what is open may be seen
      const names = differences.map((text) => text.split(":", 1)[0]!.split(".").at(-1)!);
      expect(names.toSorted()).toEqual([
        "GatewayService/ListContracts target_org_id",
        "GatewayService/SubmitTask contract_id",
        // Who does the work can be asked for by its id; whether there is an agent of an id that cannot do it is told by no answer.
        "GatewayService/SubmitTask target_agent_id",
        "GatewayService/SubmitTask target_org_id",
      ]);
    });
  });

  test("to a sibling agent a task and a trace of which it is no part are answered like random ones", async () => {
    const sibling = await theirs.org.agent();
    const shared = new Set([
      "namespace",
      "key",
      "org_id",
      "agent_id",
      "target_agent_id",
      "to_agent_id",
      "partner_agent_id",
      "caller_agent_id",
      "member_agent_id",
      "contract_id",
      "listing_id",
      "grant_id",
      "counterparty_org_id",
    ]);
    expect(await compare(theirs.belongings, sibling.key, theirs.contractId, (field) => shared.has(field))).toEqual([]);
    const [got, other] = [theirs.caller.agentId, randomLike(theirs.caller.agentId)];
    for (const name of ["SubmitTask", "ListTasks", "ListDeadLetters", "ListTraces", "TailTraces", "Serve"]) {
      const method = methodNamed(name);
      const pair = [got, other].map((agentId) =>
        call(method, sibling.key, { ...companions(method, theirs.contractId), agentId }),
      );
      const [a, b] = await Promise.all(pair);
      expect([name, comparable(a!, got)]).toEqual([name, comparable(b!, other)]);
    }
    answers.length = 0; // its own organisation's names are no secret to a sibling
  });

  test("a sibling agent sees nothing of others' tasks in lists and feeds, and its part of a trace it was asked into", async () => {
    const sibling = await theirs.org.agent();
    expect((await sibling.as.bus.listTasks({})).tasks).toEqual([]);
    expect((await sibling.as.traces.listTraces({})).traces).toEqual([]);
    await world.settled();
    // Of the end of a grant each agent of its organisations hears.
    const eventsOf = async (as: Clients) =>
      (await as.events.listEvents({})).events.filter(({ type }) => type !== "grant.revoked");
    expect(await eventsOf(sibling.as)).toEqual([]);
    expect(await firstStep(sibling.as)).toBeUndefined();
    expect(await firstStep(theirs.caller.as)).toBeDefined();
    expect((await sibling.as.deadLetters.listDeadLetters({})).deadLetters).toEqual([]);
    expect((await theirs.caller.as.bus.listTasks({})).tasks).toHaveLength(3);
    expect(await eventsOf(theirs.caller.as)).toHaveLength(5);
    expect((await theirs.caller.as.deadLetters.listDeadLetters({})).deadLetters).toHaveLength(1);
  });

  /** The first trace event that somebody sees from the start, if there is one before the feed is silent. */
  async function firstStep(as: Clients): Promise<string | undefined> {
    const leave = new AbortController();
    const nothing = setTimeout(() => leave.abort(), 300);
    try {
      for await (const { event } of as.traces.tailTraces({ fromStart: true }, { signal: leave.signal }))
        if (event.case === "traceEvent") return event.value.taskId;
    } catch (error) {
      if (!leave.signal.aborted) throw error;
    } finally {
      clearTimeout(nothing);
      leave.abort();
    }
    return undefined;
  }

  async function firstChange(as: Clients): Promise<string> {
    const leave = new AbortController();
    try {
      for await (const { cursor, event } of as.queues.watchJobs({ fromStart: true }, { signal: leave.signal }))
        if (event.case === "change") return cursor;
    } finally {
      leave.abort();
    }
    throw new Error("there is none");
  }

  test("page tokens and cursors of another organisation are answered like random ones", async () => {
    const { admin } = theirs.org;
    await world.settled();
    const size = { pageSize: 1 };
    const tokens: [DescMethod, string, Record<string, unknown>][] = [
      [methodNamed("ListAgents"), (await admin.agents.listAgents(size)).nextPageToken, {}],
      [methodNamed("ListApiKeys"), (await admin.keys.listApiKeys(size)).nextPageToken, {}],
      [methodNamed("ListTasks"), (await admin.bus.listTasks(size)).nextPageToken, {}],
      [methodNamed("ListGrants"), (await admin.grants.listGrants(size)).nextPageToken, {}],
      [methodNamed("ListTraces"), (await admin.traces.listTraces(size)).nextPageToken, {}],
      [methodNamed("ListTransactions"), (await admin.billing.listTransactions(size)).nextPageToken, {}],
      [methodNamed("ListJobs"), (await admin.queues.listJobs(size)).nextPageToken, {}],
      [methodNamed("ListSchedules"), (await admin.schedules.listSchedules(size)).nextPageToken, {}],
      [methodNamed("ListEvents"), (await admin.events.listEvents(size)).nextPageToken, {}],
      [methodNamed("ListAuditEvents"), (await admin.admin.listAuditEvents(size)).nextPageToken, {}],
      [
        methodNamed("ListOrganizations"),
        (await world.operator.organizations.listOrganizations(size)).nextPageToken,
        {},
      ],
      [
        methodNamed("GetTrace"),
        (await admin.traces.getTrace({ ...size, traceId: theirs.belongings.trace_id! })).nextPageToken,
        { traceId: mine.belongings.trace_id },
      ],
    ];
    const step = (await admin.traces.getTrace({ traceId: theirs.belongings.trace_id! })).events[0]!.cursor;
    const event = (await admin.events.listEvents({})).events[0]!.cursor;
    const cursors: [DescMethod, string, Record<string, unknown>][] = [
      [TraceService.method.tailTraces, step, {}],
      [BusService.method.watchTask, step, { taskId: mine.belongings.task_id }],
      [EventService.method.watchEvents, event, {}],
      [QueueService.method.watchJobs, await firstChange(theirs.caller.as), {}],
    ];
    for (const [method, token, fields] of [...tokens, ...cursors]) {
      const field = method.methodKind === "unary" ? "pageToken" : "afterCursor";
      expect([nameOf(method), token]).toEqual([nameOf(method), expect.stringMatching(/^[\w-]{20,}$/)]);
      const random = randomBytes(token.length).toString("base64url").slice(0, token.length);
      const [foreign, other] = [
        await call(method, mine.org.adminKey, { ...fields, [field]: token }),
        await call(method, mine.org.adminKey, { ...fields, [field]: random }),
      ];
      expect(foreign.readable).toContain("INVALID_PAGE_TOKEN");
      expect(comparable(foreign, token)).toBe(comparable(other, random));
    }
  });

  test("a cursor does not tell how much happens on the server", async () => {
    const { admin } = mine.org;
    await world.settled();
    const { events, nextPageToken } = await admin.events.listEvents({ pageSize: 1 });
    const { nextPageToken: ofAgents } = await admin.agents.listAgents({ pageSize: 1 });
    const cursors = [events[0]!.cursor, nextPageToken, ofAgents];
    for (const cursor of cursors)
      expect(Buffer.from(cursor, "base64url").toString("latin1")).not.toMatch(/\d,\d|agt_|\["/);
    // One position has one cursor, and its length does not grow with the numbers in it.
    expect((await admin.events.listEvents({ pageSize: 1 })).events[0]!.cursor).toBe(events[0]!.cursor);
    expect(
      new Set([events[0]!.cursor, (await admin.events.listEvents({})).events[1]!.cursor].map(({ length }) => length))
        .size,
    ).toBe(1);
  });

  test("nothing another organisation wrote is ever in an answer: lists, feeds, errors", async () => {
    for (const key of [mine.org.adminKey, mine.worker.key]) {
      for (const method of methods) {
        // These calls are of HTTP/1.1, which cannot stream both ways.
        if (method.methodKind === "bidi_streaming") continue;
        await call(method, key, companions(method));
        const hasStart = method.input.fields.some(({ name }) => name === "from_start");
        if (hasStart) await call(method, key, { fromStart: true });
      }
    }
    for (const path of ["/", "/metrics"]) {
      const answer = await fetch(world.url + path, { headers: { authorization: `Bearer ${mine.org.adminKey}` } });
      answers.push(await answer.text());
    }
    expect(answers.length).toBeGreaterThan(100);
    expect(answers.filter((answer) => answer.includes(canary))).toEqual([]);
    // The canary sings: where it may be seen, it is.
    const { agents } = await theirs.org.admin.agents.listAgents({});
    expect(JSON.stringify(agents.map(({ name, description }) => [name, description]))).toContain(canary);
  });

  test("the names that another organisation took are free in one's own", async () => {
    const { agents } = await theirs.org.admin.agents.listAgents({ pageSize: 1 });
    const { agent } = await mine.org.admin.agents.registerAgent({ name: agents[0]!.name });
    expect(agent!.orgId).toBe(mine.org.orgId);
    await mine.org.admin.agents.deleteAgent({ agentId: agent!.agentId });
    const init = { contractId: theirs.contractId, version: "1.0.0", description: "mine" };
    expect((await mine.org.admin.contracts.registerContract(init)).contract?.description).toBe("mine");
    const { contract } = await theirs.org.admin.contracts.getContract({ contractId: theirs.contractId });
    expect(contract?.description).toContain(canary);
  });

  test("a task may be of a trace of another organisation, and neither sees the other's part", async () => {
    const both = theirs.belongings.trace_id!;
    const headers = { traceparent: `00-${both}-${"2".repeat(16)}-01` };
    const input = fromJson(ValueSchema, "mine");
    await mine.caller.as.bus.submitTask({ contractId: mine.contractId, contractVersion: "1.0.0", input }, { headers });
    const seen = await mine.org.admin.traces.getTrace({ traceId: both });
    const theirView = await theirs.org.admin.traces.getTrace({ traceId: both });
    expect([seen.trace?.tasks, theirView.trace?.tasks]).toEqual([1, 1]);
    const tasksOf = (events: readonly { taskId: string }[]) =>
      new Set(events.map(({ taskId }) => taskId).filter(Boolean));
    expect(tasksOf(seen.events).intersection(tasksOf(theirView.events)).size).toBe(0);
  });

  test("the operator reads all but payloads of an organisation it names; RevealPayload shows them, for a reason that its log tells", async () => {
    const { admin, adminKey, orgId } = theirs.org;
    const marks = ["value", " failed", " waits", " payload"].map((text) => canary + text);
    const secrets = [...marks, Buffer.from(`${canary} value`).toString("base64")];
    /** The methods that show a payload of theirs to who holds the key. */
    const shownTo = async (key: string): Promise<string[]> => {
      const shown: string[] = [];
      for (const method of methods) {
        const { kind } = getOption(method, access);
        if (kind !== Kind.QUERY && kind !== Kind.FEED) continue;
        const named = method.input.fields.flatMap(({ name, localName, oneof }) => {
          const id = theirs.belongings[name] ?? (/^(from_start|include_values?)$/.test(name) ? true : undefined);
          return id === undefined ? [] : [oneof ? [oneof.localName, { case: localName, value: id }] : [localName, id]];
        });
        const answer = await call(method, key, Object.fromEntries(named));
        if (secrets.some((secret) => answer.readable.includes(secret))) shown.push(method.name);
      }
      return shown;
    };
    const openly = await shownTo(adminKey);
    answers.length = 0; // they are theirs
    expect(openly).toEqual(expect.arrayContaining(["GetTask", "WatchTask", "GetDeadLetter", "GetApproval", "GetJob"]));
    expect(openly).toEqual(expect.arrayContaining(["GetSchedule", "GetMessage", "ListMessages", "GetEntry"]));
    expect(openly).toEqual(expect.arrayContaining(["GetSharedEntry"]));
    expect(await shownTo(world.operatorKey)).toEqual([]);
    answers.length = 0; // what is no payload the operator may see

    const { belongings: of } = theirs;
    const subjects = {
      taskId: of.task_id!,
      deadLetterId: of.dead_letter_id!,
      approvalId: of.approval_id!,
      jobId: of.job_id!,
      scheduleId: of.schedule_id!,
      messageId: of.message_id!,
      entry: { agentId: of.agent_id!, namespace: of.namespace!, key: of.key! },
      delivery: { webhookId: of.webhook_id!, eventId: of.event_id! },
    };
    const method = methodNamed("RevealPayload");
    const reason = "they asked: ticket 7";
    for (const [name, value] of Object.entries(subjects)) {
      const fields = { orgId, reason, subject: { case: name, value } };
      const answer = await callRaw(world.url, method, minimalRequest(method.input, fields), {
        authorization: `Bearer ${world.operatorKey}`,
      });
      const expected =
        name === "delivery" ? "webhook.test" : /canary7f3a(value| failed| waits| payload)|Y2FuYXJ5N2YzYSB2YWx1ZQ==/;
      expect([name, answer.readable]).toEqual([name, expect.stringMatching(expected)]);
      const [row] = (await admin.admin.listAuditEvents({ pageSize: 1 })).auditEvents;
      expect(row).toMatchObject({ method: nameOf(method), role: Role.OPERATOR, orgId });
      expect(row!.resource).toMatchObject({
        reason,
        ...snakeCased(typeof value === "string" ? { [name]: value } : value),
      });
      expect(secrets.filter((secret) => JSON.stringify(row!.resource).includes(secret))).toEqual([]);
    }
    const shared = { agentId: "", namespace: of.namespace!, key: of.key! };
    const { payloads } = await world.operator.admin.revealPayload({
      orgId,
      reason,
      subject: { case: "entry", value: shared },
    });
    expect(payloads.map(({ field }) => field)).toEqual(["value"]);
    // What is not there is not shown, and nothing is noted.
    const before = (await admin.admin.listAuditEvents({ pageSize: 250 })).auditEvents.length;
    const gone = world.operator.admin.revealPayload({ orgId, reason, subject: { case: "taskId", value: "tsk_none" } });
    await expect(gone).rejects.toThrow(/task not found/);
    expect((await admin.admin.listAuditEvents({ pageSize: 250 })).auditEvents).toHaveLength(before);
  });

  test("the operator acts in the organisation it names, and finds none that is not there", async () => {
    const { agents } = await world.operator.agents.listAgents({ orgId: theirs.org.orgId });
    expect(agents.map(({ agentId }) => agentId)).toContain(theirs.caller.agentId);
    const own = await world.operator.agents.listAgents({});
    expect(own.agents.map(({ name }) => name)).toEqual(["echo"]);
    const nowhere = world.operator.agents.listAgents({ orgId: randomLike(theirs.org.orgId) });
    await expect(nowhere).rejects.toThrow(/organization not found/);
  });
});
