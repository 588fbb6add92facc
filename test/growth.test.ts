import { afterAll, beforeAll, expect, test } from "vitest";
import type { AgentOrder } from "../gen/moltwire/directory/v1/directory_service_pb.ts";
import { agentsWithCapability, listAgents } from "../src/bus/agent-store.ts";
import { dueApprovals, listApprovals } from "../src/bus/approval/store.ts";
import {
  budgetsOfTask,
  effectiveBudget,
  findBudgetById,
  listBudgets,
  mayRead,
} from "../src/bus/budget/budget-store.ts";
import { findUse, standingOfTask, usedByModel, usedInAll } from "../src/bus/budget/use-store.ts";
import { countOpenCircuits } from "../src/bus/circuit/circuit-store.ts";
import { countBroughtOver, listContracts, usableContracts } from "../src/bus/contract-store.ts";
import { agentModels, lastModel, listAgentDays, traceSteps, traceTotals } from "../src/bus/cost/cost-store.ts";
import { countLiveRates, rateFor, ratesOfAgent } from "../src/bus/cost/rate-store.ts";
import { listDeadLetters, retriesOf } from "../src/bus/dead-letter/dead-letter-store.ts";
import { type DecisionFilter, listDecisions } from "../src/bus/policy/decision-store.ts";
import { listPolicies, loadPolicies, policySetRevision } from "../src/bus/policy/policy-store.ts";
import { listTasks, orphanedTasks } from "../src/bus/task-store.ts";
import {
  committedTraceSteps,
  hasStepAfter,
  lastStep,
  listTraces,
  readSteps,
  readTaskSteps,
} from "../src/bus/trace-store.ts";
import { findSession } from "../src/console/session-store.ts";
import { type Queryable, type Sql, sql, type Tx } from "../src/db/db.ts";
import { listCollaborations } from "../src/directory/collaboration-store.ts";
import { checkEvidence } from "../src/directory/evidence.ts";
import { countLiveInvites, listInvites } from "../src/directory/invite-store.ts";
import { agentsInNeed, recentWork } from "../src/directory/match-store.ts";
import { findPublicProfile } from "../src/directory/profile-store.ts";
import { type Filter, noFilter, searchProfiles } from "../src/directory/search-store.ts";
import { listEarnings, totalEarnings } from "../src/exchange/billing/earnings.ts";
import { listLines } from "../src/exchange/billing/line-store.ts";
import { findCall as findPurchase, freeUsed, hasBought, oldFreeUse } from "../src/exchange/call/call-store.ts";
import { latestGrant } from "../src/exchange/call/grant.ts";
import {
  dueHolds,
  findEnding,
  findHolds,
  findTransfers,
  isReversed,
  lapsedHolds,
  readStanding,
} from "../src/exchange/ledger/store.ts";
import { endedSince, latestTimes } from "../src/exchange/listing/measure.ts";
import { type ListingFilter, searchListings } from "../src/exchange/listing/search-store.ts";
import { countListings, findListing, findOffer, listCategories } from "../src/exchange/listing/store.ts";
import { countVerdicts, lastDelivery } from "../src/exchange/market/delivery-store.ts";
import { searchTasks, type TaskFilter } from "../src/exchange/market/list-store.ts";
import { countClaims, countLive, dueTasks, findTask } from "../src/exchange/market/store.ts";
import { findReview, listReviews } from "../src/exchange/review/store.ts";
import { dueSubscriptions, findLive, listSubscriptions } from "../src/exchange/subscription/store.ts";
import { findKey, listKeys } from "../src/federation/api-key-store.ts";
import {
  findCrossing,
  listStatuses,
  oldCrossings,
  openCrossings,
  unsettledGrants,
} from "../src/federation/gateway/crossing-store.ts";
import { grantsOn } from "../src/federation/gateway/opening.ts";
import { dueGrants, listGrants } from "../src/federation/grant/list-store.ts";
import { countLiveGrants, countProposals, findGrant, listRevisions } from "../src/federation/grant/store.ts";
import { findDay, listUsage } from "../src/federation/grant/usage-store.ts";
import { countNamespaces as countFamilies, listNamespaces as listFamilies } from "../src/federation/namespace-store.ts";
import { countOfTrace, findCall, findCallOfTask, isNonceTaken } from "../src/federation/peer/call-store.ts";
import { hopsUnderWay, taskOfSpan } from "../src/federation/peer/chain.ts";
import { serverKeys } from "../src/federation/peer/identity.ts";
import { openAskedBy, openDoneBy, removedPeers } from "../src/federation/peer/removed.ts";
import { findByKey, findPeer, isAudienceTaken, keysOf, listPeers } from "../src/federation/peer/store.ts";
import { offeredFor } from "../src/federation/peer/withdraw.ts";
import { readEvents as readScenarioEvents } from "../src/lab/event-store.ts";
import { sandboxesToRemove } from "../src/lab/sandbox.ts";
import { countRunning, findResults, findScenario, listScenarios, orphanedRuns } from "../src/lab/store.ts";
import { logAges, oldestChanges, readChanges } from "../src/memory/log-store.ts";
import { findOwnerAndEntry } from "../src/memory/owner.ts";
import { countNamespaces, findSharedEntry, listNamespaces } from "../src/memory/shared-store.ts";
import { dueEntries, listEntries, readPlaces } from "../src/memory/store.ts";
import {
  findHash,
  findHead,
  findHeadAndUnsealed,
  nextOrganizations,
  readChain,
  rowsToSeal,
} from "../src/ops/audit-chain-store.ts";
import { listAudit } from "../src/ops/audit-store.ts";
import { dueMail, listContacts } from "../src/ops/contact-store.ts";
import { lastEvent, readEvents, readEventsBack } from "../src/ops/outbox.ts";
import {
  costsByDay,
  countsNow,
  decisionsByHour,
  deliveriesByHour,
  failuresByHour,
  queueLevels,
  tracesByHour,
} from "../src/ops/overview-store.ts";
import { overdue } from "../src/ops/queue-metrics.ts";
import { readCheckSlices, readChecks } from "../src/ops/self-check.ts";
import { readStats } from "../src/ops/stats-store.ts";
import { countQueues } from "../src/queue/quota.ts";
import { standingOf } from "../src/queue/schedule/standing.ts";
import {
  countSchedules,
  dueSchedules,
  hasUnfinished,
  listSchedules,
  nextDue,
  takenTimes,
} from "../src/queue/schedule/store.ts";
import { levelsNamed } from "../src/queue/tally.ts";
import { sealedTables } from "../src/sealed-columns.ts";
import { activeKey, findKeyById, hasStale, keysChangedAfter, wrappedBy } from "../src/vault/key-store.ts";
import { countRows, lockRows, readHeads } from "../src/vault/walk-store.ts";
import { countLeases, pendingWebhooks } from "../src/webhook/claim.ts";
import { attemptsOf, deliveriesSince, findDelivery, listDeliveries } from "../src/webhook/delivery-store.ts";
import { subscribers } from "../src/webhook/fan-out.ts";
import { countWebhooks, findWebhook, listWebhooks } from "../src/webhook/store.ts";
import { hasOldDelivery } from "../src/webhook/sweep.ts";
import { countPending } from "../src/webhook/webhook-metrics.ts";
import { start, type World } from "./harness.ts";

/** What SQLite does for a query that grows with the data: each line of its plan. The rows of a real server decide nothing here. */
let world: World;
beforeAll(async () => {
  world = await start("sqlite");
});
afterAll(() => world[Symbol.asyncDispose]());

const at = { xid: 0, seq: 400_000 };
const auditHead = { ...at, org_id: "org_a", number: 400_000, hash: "", seal_ms: 0 };
const nobody = { state: 0, agentId: "", contractId: "", traceId: "" };
const noApproval = { state: 0, agentId: "", callerAgentId: "", contractId: "", taskId: "", traceId: "" };
const anyLetter = {
  ...{ taskId: "", traceId: "", callerAgentId: "", targetAgentId: "", contractId: "", contractVersion: "" },
  ...{ reason: 0, state: 0, startMs: null, endMs: null },
};
const org = "org_a";
const memory = { orgId: org, memoryId: "agt_a" };
const entry = { namespace: "n", key: "k" };
const entries = { namespace: "n", prefix: "k", byTime: false, publicOnly: false, withValues: true };
const named = { ownerAgentId: "", publicOnly: false };
const schedule = { org_id: org, schedule_id: "sch_a" };
const trace = "0".repeat(32);
const webhook = { orgId: org, webhookId: "whk_a" };
const days = { startMs: 0, endMs: 10 };
const grant = { org_id: org, grant_id: "grt_a", revision: 10 };
const aPeer = {
  ...{ org_id: org, peer_id: "per_a", name: "p", base_url: "", audience: "", remote_org_id: "", agent_id: "" },
  ...{ state: 1, create_ms: 0, update_ms: 0 },
};
const anyGrant = { state: 0, party: 0, counterpartyOrgId: "" } as const;
const subjects = [{ scope: 1, subjectIds: ["agt_a", "*"] }];
const account = { orgId: org, accountId: "wallet" };
const transfers = [1, 2].map((n) => ({ orgId: org, transferId: `t${n}` }));
const anyLine = { accountId: "", platform: true, kind: 0, startMs: null, endMs: null };
const lineAfter = [5, "txn_a", "wallet", org];
const anyBudget = { scope: 0, subjectId: "", period: 0, minUsedPercent: 80 };
const anyTask: TaskFilter = { state: 1, category: "", tag: "", minReward: 0n, words: [], side: undefined };
const tasks = (filter: Partial<TaskFilter>) => (db: Queryable) =>
  searchTasks(db, { ...anyTask, ...filter }, [9], 50, 1);
const mine = { orgId: org, agentId: "agt_a" };
const budgetName = { orgId: org, scope: 6, subjectId: "m", period: 1 };
const useKey = { orgId: org, budgetId: "bdg_a", subjectId: "agt_a" };

const listing = { org_id: org, listing_id: "lst_a" };
const earned = { listingId: "", startMs: 0, endMs: 10 };
const noListingFilter: ListingFilter = {
  ...{ words: [], category: "", tags: [], maxPriceMicros: 0, minMeanMilli: 0, providerOrgId: "", mine: false },
};
const listings = (filter: Partial<ListingFilter>, order: 1 | 2 | 3) => (db: Queryable) =>
  searchListings(db, { ...noListingFilter, ...filter }, order, ["walk", 5, 5], 50);

const agents =
  (orgId: string | undefined, filter: Partial<Filter>, order: AgentOrder, after: (string | number)[]) =>
  (db: Queryable) =>
    searchProfiles(db, { orgId, asAgentId: "agt_a" }, { ...noFilter, ...filter }, order, after, 50, 1);

const anything: DecisionFilter = {
  verdict: 0,
  agentId: "",
  action: "",
  resource: "",
  policyId: "",
  taskId: "",
  traceId: "",
};
const decisions = (filter: Partial<DecisionFilter>) => (db: Queryable) =>
  listDecisions(db, org, { ...anything, ...filter }, [1, "dec_z"], 51);

test.each<[string, (db: Queryable) => Promise<unknown>, RegExp]>([
  [
    "following the steps of an organisation",
    (db) => readSteps(db, org, at, 256),
    /trace_event_log \(org_id=\? AND xid=\? AND seq>\?\)/,
  ],
  [
    "following the steps of a trace and the pieces of a task",
    (db) => readTaskSteps(db, org, trace, "tsk_a", at, 256),
    /trace_event_trace \(org_id=\? AND trace_id=\? AND xid=\? AND seq>\?\)/,
  ],
  [
    "reading the steps of a trace",
    (db) => committedTraceSteps(db, org, trace, at, 256),
    /trace_event_trace \(org_id=\? AND trace_id=\? AND xid=\? AND seq>\?\)/,
  ],
  ["whether a task has another step", (db) => hasStepAfter(db, org, trace, "tsk_a", at), /trace_event_trace/],
  ["where the steps end", (db) => lastStep(db, org), /trace_event_log \(org_id=\?/],
  ["following events", (db) => readEvents(db, org, at, 256), /outbox_log \(org_id=\? AND xid=\? AND seq>\?\)/],
  ["events, newest first", (db) => readEventsBack(db, org, at, 256), /outbox_log \(org_id=\? AND xid=\? AND seq<\?\)/],
  ["listings, the best first", listings({}, 1), /exchange_listing_best \(\(?rank_milli/],
  ["listings, newest first", listings({}, 2), /exchange_listing_newest/],
  ["listings, cheapest first", listings({}, 3), /exchange_listing_price/],
  ["listings of a category", listings({ category: "c" }, 1), /exchange_listing_category_best \(category=\?/],
  [
    "listings of an organisation",
    (db) => searchListings(db, { ...noListingFilter, providerOrgId: org }, 1, undefined, 50),
    /exchange_listing_org \(org_id=\?\)/,
  ],
  [
    "listings by words",
    (db) => searchListings(db, { ...noListingFilter, words: ["a"] }, 1, undefined, 50),
    /exchange_words VIRTUAL TABLE INDEX/,
  ],
  ["a listing", (db) => findListing(db, "lst_a"), /sqlite_autoindex_exchange_listing_1 \(listing_id=\?\)/],
  ["an offer of a listing", (db) => findOffer(db, listing, 3), /exchange_offer USING PRIMARY KEY/],
  ["how many listings there are", (db) => countListings(db, org, 1_000), /exchange_listing_org \(org_id=\?\)/],
  ["categories", (db) => listCategories(db, "c", 51), /exchange_category USING PRIMARY KEY \(category>\?\)/],
  [
    "how requests for a listing ended",
    (db) => endedSince(db, listing, 5),
    /exchange_day USING PRIMARY KEY \(org_id=\? AND listing_id=\? AND day_ms>\?\)/,
  ],
  [
    "how long they took",
    (db) => latestTimes(db, listing, 5),
    /exchange_call_settled \(org_id=\? AND listing_id=\? AND end_ms>\?\)/,
  ],
  ["a request for a listing", (db) => findPurchase(db, org, "tsk_a"), /exchange_call_1 \(org_id=\? AND task_id=\?\)/],
  [
    "whether a listing was bought",
    (db) => hasBought(db, org, "lst_a"),
    /exchange_call_bought \(caller_org_id=\? AND listing_id=\?\)/,
  ],
  [
    "what is used of a free tier",
    (db) => freeUsed(db, { orgId: org, listingId: "lst_a", periodMs: 5 }),
    /exchange_free_use USING PRIMARY KEY/,
  ],
  [
    "counts of free requests that are kept no longer",
    (db) => db.all(oldFreeUse(1, 100)),
    /exchange_free_use_old \(period_ms<\?\)/,
  ],
  [
    "the grant on a listing",
    (db) => latestGrant(db, org, "lst_a"),
    /federation_grant_listings \(grantee_org_id=\? AND subject=\?\)/,
  ],
  ["a page of earnings", (db) => listEarnings(db, org, earned, [5, "lst_a"], 51), /exchange_day_latest \(org_id=\?/],
  [
    "earnings of a listing",
    (db) => listEarnings(db, org, { ...earned, listingId: "lst_a" }, undefined, 51),
    /exchange_day USING PRIMARY KEY \(org_id=\? AND listing_id=\?/,
  ],
  ["all earnings", (db) => totalEarnings(db, org, earned), /exchange_day_latest \(org_id=\?/],
  [
    "the subscription to a listing",
    (db) => findLive(db, org, "lst_a"),
    /exchange_subscription_live \(org_id=\? AND listing_id=\?\)/,
  ],
  ["due subscriptions", (db) => dueSubscriptions(db, 5, 100), /exchange_subscription_due \(period_end_ms<\?\)/],
  [
    "a page of subscriptions",
    (db) => listSubscriptions(db, org, { state: 1, listingId: "lst_a" }, ["sub_z"], 51),
    /exchange_subscription_1 \(org_id=\? AND subscription_id<\?\)/,
  ],
  [
    "a review",
    (db) => findReview(db, listing, org),
    /exchange_review_1 \(org_id=\? AND listing_id=\? AND reviewer_org_id=\?\)/,
  ],
  [
    "a page of reviews",
    (db) => listReviews(db, listing, [5, "rev_a"], 51),
    /exchange_review_latest \(org_id=\? AND listing_id=\?/,
  ],
  ["a session", (db) => findSession(db, "0".repeat(64)), /console_session USING PRIMARY KEY \(token_sha256=\?\)/],
  [
    "an overview: what there is",
    (db) => db.all(countsNow(org)),
    /agent_namespace \(org_id=\?\)[\s\S]*agent_circuit_not_closed \(org_id=\?\)[\s\S]*contract_\w+ \(org_id=\?\)[\s\S]*task_state \(org_id=\? AND state<\?\)[\s\S]*approval_state \(org_id=\? AND state=\?\)[\s\S]*dead_letter_state \(org_id=\? AND state=\?\)[\s\S]*webhook_delivery_state \(org_id=\? AND webhook_id=\? AND state=\?\)/,
  ],
  [
    "an overview: deliveries",
    (db) => db.all(deliveriesByHour(org, 1)),
    /webhook_delivery_time \(org_id=\? AND webhook_id=\? AND event_ms>\?\)/,
  ],
  [
    "an overview: its queues",
    (db) => db.all(queueLevels(org)),
    /queue_level USING PRIMARY KEY \(org_id=\? AND queue>\?\)/,
  ],
  ["an overview: traces", (db) => db.all(tracesByHour(org, 1)), /trace_start \(org_id=\? AND start_ms>\?\)/],
  ["an overview: failures", (db) => db.all(failuresByHour(org, 1)), /dead_letter_time \(org_id=\? AND create_ms>\?\)/],
  [
    "an overview: decisions",
    (db) => db.all(decisionsByHour(org, 2, 1)),
    /policy_decision_verdict \(org_id=\? AND verdict=\? AND time_ms>\?\)/,
  ],
  ["an overview: costs", (db) => db.all(costsByDay(org, 1)), /agent_cost_day \(org_id=\? AND day_ms>\?\)/],
  ["where the events end", (db) => lastEvent(db, org), /outbox_log \(org_id=\?/],
  [
    "a page of audit",
    (db) => listAudit(db, org, [0, 400_000], 51),
    /audit_event_log \(org_id=\? AND xid=\? AND seq<\?\)/,
  ],
  ["where an audit chain ends", (db) => findHead(db, org), /audit_head USING PRIMARY KEY \(org_id=\?\)/],
  [
    "audit rows to chain",
    (db) => rowsToSeal(db as Tx, auditHead, 256),
    /audit_event_log \(org_id=\? AND xid=\? AND seq>\?\)/,
  ],
  [
    "how many audit rows are to be chained",
    (db) => findHeadAndUnsealed(db, org, 10_000),
    /audit_event_log \(org_id=\? AND xid=\? AND seq>\?\)/,
  ],
  [
    "a page of an audit chain",
    (db) => readChain(db, org, 400_000, 500_000, 250),
    /audit_event_number \(org_id=\? AND number>\? AND number<\?\)/,
  ],
  ["a row of an audit chain", (db) => findHash(db, org, 7), /audit_event_number \(org_id=\? AND number=\?\)/],
  [
    "which organisations have audit rows to chain",
    (db) => nextOrganizations(db, org, 500),
    /organization USING .*\(org_id>\?\)[\s\S]*audit_event_log \(org_id=\? AND xid=\? AND seq>\?\)/,
  ],
  ["a page of tasks", (db) => listTasks(db, org, nobody, ["tsk_z"], 51), /\(org_id=\? AND task_id<\?\)/],
  [
    "a page of one agent's tasks in one state",
    (db) => listTasks(db, org, { ...nobody, agentId: "agt_a", state: 4 }, ["tsk_z"], 51),
    /task_caller \(org_id=\? AND caller_agent_id=\? AND task_id<\?\)/,
  ],
  [
    "a page of one agent's tasks of one contract",
    (db) => listTasks(db, org, { ...nobody, agentId: "agt_a", contractId: "c" }, ["tsk_z"], 51),
    /task_target \(org_id=\? AND target_agent_id=\? AND task_id<\?\)/,
  ],
  [
    "a page of the tasks of one trace in one state",
    (db) => listTasks(db, org, { ...nobody, traceId: trace, state: 4 }, ["tsk_z"], 51),
    /task_trace \(org_id=\? AND trace_id=\?/,
  ],
  [
    "a page of traces",
    (db) => listTraces(db, org, { openerAgentId: "", contractId: "" }, [1, trace], 51),
    /trace_start \(org_id=\? AND \(start_ms/,
  ],
  [
    "approvals that nobody decided in time",
    (db) => dueApprovals(db, 1, [0, "apr_a"], 100),
    /approval_due \(expire_ms>\? AND expire_ms<\?\)/,
  ],
  [
    "a page of one agent's approvals in one state",
    (db) => listApprovals(db, org, { ...noApproval, callerAgentId: "agt_a", state: 1 }, ["apr_z"], 51),
    /approval_caller \(org_id=\? AND caller_agent_id=\? AND approval_id<\?\)/,
  ],
  [
    "a page of the approvals of one contract in one state",
    (db) => listApprovals(db, org, { ...noApproval, contractId: "c", state: 1 }, ["apr_z"], 51),
    /approval_contract \(org_id=\? AND contract_id=\? AND approval_id<\?\)/,
  ],
  [
    "a page of the approvals that concern one agent",
    (db) => listApprovals(db, org, { ...noApproval, agentId: "agt_a" }, ["apr_z"], 51),
    /approval_target \(org_id=\? AND target_agent_id=\? AND approval_id<\?\)/,
  ],
  ["the peer whose key it is", (db) => findByKey(db, "k", 1), /federation_peer_key_id \(key_id=\?\)/],
  ["a peer by its audience", (db) => isAudienceTaken(db, "a"), /federation_peer_audience \(audience=\?\)/],
  ["a peer", (db) => findPeer(db, "per_a"), /federation_peer_id \(peer_id=\?\)/],
  ["a page of all peers", (db) => listPeers(db, true, ["per_a"], 51), /federation_peer_id \(peer_id>\?\)/],
  ["a page of peers", (db) => listPeers(db, false, ["per_a"], 51), /federation_peer_(active|id) \(peer_id>\?\)/],
  ["the keys of a peer", (db) => keysOf(db, aPeer), /federation_peer_key_1 \(org_id=\? AND peer_id=\?\)/],
  ["work that a peer asked for", (db) => findCall(db, org, "c"), /federation_peer_call_1 \(org_id=\? AND call_id=\?\)/],
  [
    "the work of a peer by its task",
    (db) => findCallOfTask(db, org, "tsk_a"),
    /federation_peer_call_task \(org_id=\? AND task_id=\?\)/,
  ],
  ["how far a trace has come", (db) => hopsUnderWay(db, "t"), /federation_peer_call_trace \(trace_id=\?\)/],
  [
    "how much of a trace a peer has asked for",
    (db) => countOfTrace(db, org, "t", 10),
    /federation_peer_call_trace \(trace_id=\? AND org_id=\?\)/,
  ],
  ["the task of a span", (db) => taskOfSpan(db, org, "t", "s"), /task_trace \(org_id=\? AND trace_id=\?\)/],
  [
    "whether a message was taken",
    (db) => isNonceTaken(db, "k", "n"),
    /federation_peer_nonce_1 \(key_id=\? AND nonce=\?\)/,
  ],
  ["peers that were removed", (db) => removedPeers(db, 10), /federation_peer_unsettled/],
  [
    "what a peer has asked for",
    (db) => openAskedBy(db, aPeer, { state: 1, task_id: "tsk_a" }, 50),
    /task_state \(org_id=\? AND state=\?\)/,
  ],
  [
    "what a peer has in hand",
    (db) => openDoneBy(db, aPeer, { state: 1, task_id: "tsk_a" }, 50),
    /task_state \(org_id=\? AND state=\?\)/,
  ],
  ["what was brought over from peers", (db) => countBroughtOver(db, org, 10), /contract.* \(org_id=\?/],
  ["what is offered for a peer", (db) => offeredFor(db, aPeer), /\(org_id=\? AND peer_id=\?\)/],
  ["the keys of this server", (db) => serverKeys(db, org), /server_key_1 \(org_id=\?\)/],
  [
    "a request across organisations",
    (db) => findCrossing(db, org, "tsk_a"),
    /PRIMARY KEY \(org_id=\? AND task_id=\?\)|federation_crossing_1 \(org_id=\? AND task_id=\?\)/,
  ],
  [
    "the open requests of a grant",
    (db) => openCrossings(db, grant, "tsk_a", 100),
    /federation_crossing_open \(org_id=\? AND grant_id=\? AND task_id>\?\)/,
  ],
  [
    "the grants that have left their force",
    (db) => unsettledGrants(db, { org_id: org, grant_id: "grt_a" }, 100),
    /federation_grant_unsettled/,
  ],
  [
    "the requests across organisations that are kept no longer",
    (db) => db.all(oldCrossings(1, 100)),
    /federation_crossing_ended \(create_ms<\?\)/,
  ],
  [
    "the requests of a trace, made",
    (db) => listStatuses(db, org, trace, undefined, ["tsk_z"], 51),
    /federation_crossing_caller \(caller_org_id=\? AND trace_id=\? AND task_id<\?\)/,
  ],
  [
    "the requests of a trace, that came in",
    (db) => listStatuses(db, org, trace, undefined, ["tsk_z"], 51),
    /federation_crossing_trace \(org_id=\? AND trace_id=\? AND task_id<\?\)/,
  ],
  [
    "the grants in force on a contract",
    (db) => grantsOn(db, org, "org_b", { contractId: "c", capability: "c", namespace: "n" }),
    /federation_grant_in_force \(grantee_org_id=\? AND org_id=\? AND subject_kind=\? AND subject=\?\)/,
  ],
  [
    "the contracts of a capability that take tasks",
    (db) => usableContracts(db, org, { kind: "capability", subject: "c" }, "", ["c", 1, "1.0.0"], 51),
    /contract_capability \(org_id=\? AND capability=\? AND \(contract_id,create_ms,version\)>/,
  ],
  [
    "the contracts of a namespace that take tasks and ask for a capability",
    (db) => usableContracts(db, org, { kind: "namespace", subject: "n" }, "c", ["c", 1, "1.0.0"], 51),
    /contract_namespace \(org_id=\? AND namespace=\? AND \(contract_id,create_ms,version\)>/,
  ],
  [
    "what is used of a grant on a day",
    (db) => findDay(db, { orgId: org, grantId: "grt_a", dayMs: 0 }),
    /\(org_id=\? AND grant_id=\? AND day_ms=\?\)/,
  ],
  ["what the attempts of a task used", (db) => usedInAll(db, org, "tsk_a"), /PRIMARY KEY \(org_id=\? AND task_id=\?\)/],
  ["tasks without a server", (db) => orphanedTasks(db, 1, 100), /task_open/],
  [
    "the agents of a capability",
    (db) => agentsWithCapability(db, org, { capability: "c", onlyAgentId: "", tier: 4, fit: true }, 250),
    /PRIMARY KEY \(org_id=\? AND capability=\?\)/,
  ],
  [
    "whether those of them that pull are there",
    (db) => agentsWithCapability(db, org, { capability: "c", onlyAgentId: "", tier: 4, fit: true }, 250),
    /SEARCH l USING PRIMARY KEY \(name>\? AND name<\?\)/,
  ],
  [
    "the room an organisation has for jobs of some queues",
    (db) => levelsNamed(db, org, new Set(["a", "b"])),
    /queue_level USING PRIMARY KEY \(org_id=\? AND queue=\?\)/,
  ],
  ["how many queues it has", (db) => countQueues(db, org), /queue_level USING PRIMARY KEY \(org_id=\? AND queue>\?\)/],
  [
    "the budgets of a task",
    (db) => budgetsOfTask(db, org, subjects),
    /PRIMARY KEY \(org_id=\? AND scope=\? AND subject_id=\?\)/,
  ],
  [
    "a page of an agent's budgets",
    (db) => listBudgets(db, org, anyBudget, { agentId: "agt_a", keyId: "key_a" }, 1, [1, "agt_a", 1], 51),
    /b USING PRIMARY KEY \(org_id=\? AND \(scope,subject_id,period\)>/,
  ],
  [
    "whether an agent may read a budget",
    (db) => mayRead(db, budgetName, { agentId: "agt_a", keyId: "" }),
    /agent_cost_model/,
  ],
  [
    "what is used of a budget",
    (db) => findUse(db, useKey),
    /PRIMARY KEY \(org_id=\? AND budget_id=\? AND subject_id=\?\)/,
  ],
  [
    "a budget with what is used of it",
    (db) => effectiveBudget(db, { orgId: org, scope: 1, subjectId: "agt_a", period: 1 }),
    /b USING PRIMARY KEY \(org_id=\? AND scope=\? AND subject_id=\? AND period=\?\)/,
  ],
  ["a budget by its id", (db) => findBudgetById(db, org, "bdg_a"), /budget_id \(org_id=\? AND budget_id=\?\)/],
  [
    "how the budgets of a task stand",
    (db) => standingOfTask(db, org, "tsk_a"),
    /r USING PRIMARY KEY \(org_id=\? AND task_id=\?\)/,
  ],
  ["what a task used", (db) => usedByModel(db, org, "tsk_a"), /PRIMARY KEY \(org_id=\? AND task_id=\?\)/],
  ["the rate of an attempt", (db) => rateFor(db, org, "agt_a", "m", 1), /AND model=\? AND effective_ms<\?\)/],
  ["how many rates there are", (db) => countLiveRates(db, org, 1, 10), /rate_live \(org_id=\? AND end_ms>\?\)/],
  ["the rates of an agent", (db) => ratesOfAgent(db, org, "agt_a", 1, 250), /rate_live \(org_id=\? AND end_ms>\?\)/],
  [
    "the model that an agent reported last",
    (db) => lastModel(db, org, "agt_a"),
    /\(org_id=\? AND agent_id=\? AND day_ms=\?\)/,
  ],
  [
    "the costs of an agent",
    (db) => agentModels(db, org, "agt_a", days, 250),
    /\(org_id=\? AND agent_id=\? AND day_ms>\? AND day_ms<\?\)/,
  ],
  [
    "a page of the costs per agent and day",
    (db) => listAgentDays(db, org, { agentId: "", model: "", window: days }, [5, "agt_a"], 51),
    /agent_cost_day \(org_id=\? AND day_ms>\? AND day_ms<\?\)/,
  ],
  [
    "the first page of the costs of a trace",
    (db) => traceSteps(db, org, trace, "agt_a", undefined, 51),
    /task_attempt_trace \(org_id=\? AND trace_id=\? AND end_ms>\?\)/,
  ],
  [
    "a page of the costs of a trace",
    (db) => traceSteps(db, org, trace, "", [1, "tsk_a", 1], 51),
    /task_attempt_trace \(org_id=\? AND trace_id=\? AND \(end_ms/,
  ],
  [
    "the costs of a trace",
    (db) => traceTotals(db, org, trace, "agt_a"),
    /task_attempt_trace \(org_id=\? AND trace_id=\?/,
  ],
  [
    "how an account stands",
    (db) => readStanding(db, account, 5),
    /ledger_account USING PRIMARY KEY \(org_id=\? AND account_id=\?\)[\s\S]*ledger_hold_account \(org_id=\? AND account_id=\? AND expire_ms<\?\)/,
  ],
  [
    "some transfers",
    (db) => findTransfers(db, transfers),
    /MULTI-INDEX OR[\s\S]*autoindex_ledger_transfer_1 \(org_id=\? AND transfer_id=\?\)/,
  ],
  [
    "what they have set aside",
    (db) => findHolds(db, transfers),
    /MULTI-INDEX OR[\s\S]*autoindex_ledger_hold_1 \(org_id=\? AND transfer_id=\?\)/,
  ],
  [
    "how what was set aside has ended",
    (db) => findEnding(db, org, "t1"),
    /ledger_transfer_pending \(org_id=\? AND pending_id=\?\)/,
  ],
  [
    "whether a transfer was undone",
    (db) => isReversed(db, transfers[0]!),
    /ledger_transfer_reverses \(reverses_org_id=\? AND reverses_id=\?\)/,
  ],
  [
    "what has lapsed of an account",
    (db) => lapsedHolds(db, account, 5, 100),
    /ledger_hold_account \(org_id=\? AND account_id=\? AND expire_ms<\?\)/,
  ],
  [
    "what has lapsed",
    (db) => dueHolds(db, 5, { expireMs: -1, orgId: "", transferId: "" }, 100),
    /ledger_hold_due \(expire_ms>\? AND expire_ms<\?\)/,
  ],
  [
    "a page of statements",
    (db) => listLines(db, org, anyLine, lineAfter, 51),
    /e USING PRIMARY KEY \(org_id=\? AND \(time_ms,transfer_id,account_id,transfer_org_id\)<\(\?,\?,\?,\?\)\)/,
  ],
  [
    "a page of an account's statement of one kind",
    (db) => listLines(db, org, { ...anyLine, accountId: "wallet", kind: 2 }, lineAfter, 51),
    /ledger_entry_account \(org_id=\? AND account_id=\? AND \(time_ms,transfer_id,transfer_org_id\)<\(\?,\?,\?\)\)/,
  ],
  [
    "a page of the statement of one kind",
    (db) => listLines(db, org, { ...anyLine, kind: 2 }, lineAfter, 51),
    /ledger_entry_kind \(org_id=\? AND kind=\? AND \(time_ms,transfer_id,account_id,transfer_org_id\)<\(\?,\?,\?,\?\)\)/,
  ],
  [
    "an account's statement of a time",
    (db) => listLines(db, org, { ...anyLine, accountId: "wallet", startMs: 1, endMs: 5 }, undefined, 51),
    /ledger_entry_account \(org_id=\? AND account_id=\? AND time_ms>\? AND time_ms<\?\)/,
  ],
  ["the circuits that are not closed", (db) => countOpenCircuits(db), /agent_circuit_not_closed/],
  ...(
    [
      [{}, "dead_letter_time (org_id=? AND"],
      [{ startMs: 1, endMs: 2 }, "dead_letter_time (org_id=? AND"],
      [{ taskId: "t", contractId: "c" }, "autoindex_dead_letter_2 (org_id=? AND task_id=?)"],
      [{ traceId: trace, state: 1 }, "dead_letter_trace (org_id=? AND trace_id=? AND"],
      [{ callerAgentId: "a", state: 1, reason: 50 }, "dead_letter_caller (org_id=? AND caller_agent_id=? AND"],
      [{ targetAgentId: "a", contractId: "c", startMs: 1 }, "dead_letter_target (org_id=? AND target_agent_id=? AND"],
      [{ contractId: "c", state: 1, reason: 50 }, "dead_letter_contract (org_id=? AND contract_id=? AND"],
      [{ reason: 50, state: 1 }, "dead_letter_reason (org_id=? AND reason=? AND"],
      [{ state: 1, contractVersion: "1.0.0" }, "dead_letter_state (org_id=? AND state=? AND"],
    ] as const
  ).map(
    ([filter, index]) =>
      [
        `a page of dead letters by ${Object.keys(filter).join(", ") || "nothing"}`,
        (db: Queryable) => listDeadLetters(db, org, { ...anyLetter, ...filter }, [1_000, "dlq_z"], 51),
        new RegExp(index.replaceAll(/[()?]/g, "\\$&")),
      ] as [string, (db: Queryable) => Promise<unknown>, RegExp],
  ),
  ["the retries of dead letters", (db) => retriesOf(db, org, ["dlq_a", "dlq_b"]), /task_retry \(org_id=\? AND retry/],
  ["a key", (db) => findKey(db, "key_a"), /PRIMARY KEY \(key_id=\?\)/],
  [
    "a page of keys",
    (db) => listKeys(db, org, { agentId: "agt_a", prefix: "" }, ["key_a"], 51),
    /api_key_agent \(org_id=\? AND agent_id=\? AND key_id>\?\)/,
  ],
  [
    "a page of keys that begin so",
    (db) => listKeys(db, org, { agentId: "", prefix: "key_0a" }, undefined, 51),
    /api_key_org \(org_id=\? AND key_id>\? AND key_id<\?\)/,
  ],
  ["the revision of a policy set", (db) => policySetRevision(db, org), /policy_set USING PRIMARY KEY \(org_id=\?\)/],
  ["loading a policy set", (db) => loadPolicies(db, org), /p USING INDEX sqlite_autoindex_policy_1 \(org_id=\?/],
  ["a page of policies", (db) => listPolicies(db, org, 2, "a", 51), /\(org_id=\? AND policy_id>\?\)/],
  [
    "a page of decisions",
    decisions({}),
    /autoindex_policy_decision_1 \(org_id=\? AND \(time_ms,decision_id\)<\(\?,\?\)\)/,
  ],
  [
    "a page of decisions of a time",
    (db) => listDecisions(db, org, { ...anything, startMs: 1, endMs: 2 }, undefined, 51),
    /autoindex_policy_decision_1 \(org_id=\? AND time_ms>\? AND time_ms<\?\)/,
  ],
  ...(
    [
      ["one verdict", { verdict: 2 }, "verdict"],
      ["one agent", { agentId: "agt_a" }, "agent"],
      ["one action", { action: "invoke" }, "action"],
      ["one resource", { resource: "r" }, "resource"],
      ["one policy", { policyId: "p" }, "policy"],
      ["one task", { taskId: "tsk_a" }, "task"],
      ["one trace", { traceId: trace }, "trace"],
      ["one agent with one verdict on one action", { agentId: "agt_a", verdict: 2, action: "invoke" }, "agent"],
      ["one policy with one verdict of one agent", { policyId: "p", agentId: "agt_a", verdict: 2 }, "policy"],
      ["one task by one policy in one trace", { taskId: "tsk_a", policyId: "p", traceId: trace }, "task"],
    ] as const
  ).map(([what, filter, index]): [string, (db: Queryable) => Promise<unknown>, RegExp] => [
    `a page of decisions of ${what}`,
    decisions(filter),
    new RegExp(`policy_decision_${index} \\(org_id=\\? AND [a-z_]+=\\? AND \\(time_ms,decision_id\\)<`),
  ]),
  [
    "an agent's entry, with all that decides on it",
    (db) => findOwnerAndEntry(db, org, "agt_a", entry, true),
    /SEARCH e USING INDEX sqlite_autoindex_memory_entry_1 \(org_id=\? AND memory_id=\? AND namespace=\? AND key=\?\)/,
  ],
  [
    "some entries at once",
    (db) => readPlaces(db, memory, [entry, entry], true),
    /SEARCH e USING INDEX sqlite_autoindex_memory_entry_1 \(org_id=\? AND memory_id=\? AND namespace=\? AND key=\?\)/,
  ],
  [
    "a page of entries by key",
    (db) => listEntries(db, memory, entries, ["ka"], 1, 51),
    /sqlite_autoindex_memory_entry_1 \(org_id=\? AND memory_id=\? AND namespace=\? AND key>\? AND key<\?\)/,
  ],
  [
    "a page of entries by time",
    (db) => listEntries(db, memory, { ...entries, byTime: true }, [9], 1, 51),
    /memory_entry_written \(org_id=\? AND memory_id=\? AND namespace=\? AND revision<\?\)/,
  ],
  ["entries of a memory that expired", (db) => dueEntries(db, memory, 1, 500), /memory_entry_due \(expire_ms<\?\)/],
  [
    "following a memory",
    (db) => readChanges(db, memory, 9, 64),
    /sqlite_autoindex_memory_change_1 \(org_id=\? AND memory_id=\? AND revision>\?\)/,
  ],
  [
    "walking through the logs of memories",
    (db) => logAges(db, memory, 500),
    /SEARCH memory USING PRIMARY KEY \(\(org_id,memory_id\)>\(\?,\?\)\)/,
  ],
  [
    "the oldest changes",
    (db) => oldestChanges(db, memory, 500),
    /sqlite_autoindex_memory_change_1 \(org_id=\? AND memory/,
  ],
  [
    "a shared entry",
    (db) => findSharedEntry(db, org, entry, true),
    /memory_namespace \(org_id=\? AND namespace=\?\)\n.*memory_entry_1 \(org_id=\? AND memory_id=\? AND namespace=\? AND key=\?\)/,
  ],
  ["a page of namespaces", (db) => listNamespaces(db, org, named, ["a"], 51), /memory_namespace \(org_id=\? AND names/],
  [
    "a page of namespaces with something public",
    (db) => listNamespaces(db, org, { ...named, publicOnly: true }, ["a"], 51),
    /memory_public \(org_id=\? AND namespace>\?\)/,
  ],
  ["when the next schedule is due", (db) => nextDue(db), /queue_schedule USING COVERING INDEX queue_schedule_due/],
  ["the schedules that are due", (db) => dueSchedules(db, 1, 128), /queue_schedule_due \(due_ms>\? AND due_ms<\?\)/],
  [
    "a page of an agent's schedules",
    (db) => listSchedules(db, org, "agt_a", "sch_a", 51),
    /queue_schedule_agent \(org_id=\? AND agent_id=\? AND schedule_id>\?\)/,
  ],
  [
    "a page of all schedules",
    (db) => listSchedules(db, org, "", "sch_a", 51),
    /autoindex_queue_schedule_1 \(org_id=\? AND schedule_id>\?\)/,
  ],
  [
    "how many schedules an agent has",
    (db) => countSchedules(db, org, "agt_a", 9),
    /COVERING INDEX queue_schedule_agent/,
  ],
  [
    "whether a schedule has an unfinished job",
    (db) => hasUnfinished(db, schedule),
    /INDEX queue_job_schedule \(org_id=\? AND schedule_id=\?\)/,
  ],
  [
    "the times of a schedule that made a job",
    (db) => takenTimes(db, schedule, 1, 2),
    /queue_schedule_run USING PRIMARY KEY \(org_id=\? AND schedule_id=\? AND nominal_ms>\? AND nominal_ms<\?\)/,
  ],
  ["how an agent stands", (db) => standingOf(db, org, "agt_a", 1), /api_key_agent \(org_id=\? AND agent_id=\?\)/],
  ["how many schedules are overdue", (db) => db.one(overdue(1)), /queue_schedule_due \(due_ms>\? AND due_ms<\?\)/],
  ["the data key that seals", (db) => activeKey(db, org), /vault_key_active \(org_id=\?\)/],
  ["a data key by its id", (db) => findKeyById(db, "dky_a"), /vault_key_id \(key_id=\?\)/],
  ["data keys that changed", (db) => keysChangedAfter(db, 9), /vault_key_epoch \(epoch>\?\)/],
  ["whether data keys are old", (db) => hasStale(db, 9), /vault_key_stale \(generation<\?\)/],
  [
    "data keys that a master key has wrapped",
    (db) => wrappedBy(db as Tx, "mk_a", 200),
    /vault_key_master \(master_id=\?\)/,
  ],
  ...sealedTables.flatMap((table) => {
    const key = table.sqliteKey ?? table.key;
    const row = Object.fromEntries(key.map((column) => [column, 1]));
    const after = key.map(() => 1);
    const [along, at] = key.includes("seq")
      ? [new RegExp(`SEARCH ${table.table} .*\\(rowid>`), new RegExp(`SEARCH ${table.table} .*\\(rowid=`)]
      : [
          new RegExp(`SEARCH ${table.table} .*\\(+${key.join(",")}\\)>`),
          new RegExp(`SEARCH ${table.table} .*\\(${key.map((column) => `${column}=\\?`).join(" AND ")}`),
        ];
    return [
      [`walking through ${table.table}`, (db) => readHeads(db, table, after, 258, 200), along],
      [`counting what is left of ${table.table}`, (db) => countRows(db, table, after, 100_000), along],
      [`some rows of ${table.table} at once`, (db) => lockRows(db as Tx, table, [row, row]), at],
    ] as [string, (db: Queryable) => Promise<unknown>, RegExp][];
  }),
  [
    "the webhooks of an event of an agent",
    (db) => subscribers(db, { orgId: org, type: "task.completed", agentId: "agt_a" }),
    /PRIMARY KEY \(org_id=\? AND pattern=\? AND agent_id=\?\)/,
  ],
  [
    "the webhooks of an event of the organisation",
    (db) => subscribers(db, { orgId: org, type: "task.completed", agentId: "" }),
    /PRIMARY KEY \(org_id=\? AND pattern=\?\)/,
  ],
  [
    "the webhooks with something to send",
    (db) => pendingWebhooks(db, "whk_a", 200),
    /SEARCH webhook_delivery USING COVERING INDEX webhook_delivery_due \(webhook_id>\?\)[\s\S]*SEARCH d USING COVERING INDEX webhook_delivery_due \(webhook_id>\?\)[\s\S]*SEARCH d USING INDEX webhook_delivery_due \(webhook_id=\?\)[\s\S]*SEARCH d USING COVERING INDEX webhook_delivery_due \(webhook_id=\?\)/,
  ],
  [
    "what is being sent to a webhook",
    (db) => countLeases(db, "whk_a", 1, 8),
    /webhook_delivery_leased \(webhook_id=\? AND next_ms>\?\)/,
  ],
  ["a webhook", (db) => findWebhook(db, webhook), /autoindex_webhook_1 \(org_id=\? AND webhook_id=\?\)/],
  [
    "a page of an agent's webhooks",
    (db) => listWebhooks(db, org, "agt_a", ["whk_a"], 51),
    /webhook_agent \(org_id=\? AND agent_id=\? AND webhook_id>\?\)/,
  ],
  [
    "a page of webhooks",
    (db) => listWebhooks(db, org, undefined, ["whk_a"], 51),
    /autoindex_webhook_1 \(org_id=\? AND webhook_id>\?\)/,
  ],
  ["how many webhooks an agent has", (db) => countWebhooks(db, org, "agt_a"), /COVERING INDEX webhook_agent/],
  [
    "a delivery",
    (db) => findDelivery(db, { ...webhook, eventId: "evt_a" }),
    /autoindex_webhook_delivery_1 \(org_id=\? AND webhook_id=\? AND event_id=\?\)/,
  ],
  [
    "a page of deliveries",
    (db) => listDeliveries(db, webhook, 0, [1, "evt_a"], 51),
    /webhook_delivery_time \(org_id=\? AND webhook_id=\? AND \(event_ms,event_id\)<\(\?,\?\)\)/,
  ],
  [
    "a page of deliveries in one state",
    (db) => listDeliveries(db, webhook, 3, [1, "evt_a"], 51),
    /webhook_delivery_state \(org_id=\? AND webhook_id=\? AND state=\? AND \(event_ms,event_id\)<\(\?,\?\)\)/,
  ],
  [
    "the deliveries to replay",
    (db) => deliveriesSince(db, webhook, [1, "evt_a"], 1_000),
    /webhook_delivery_time \(org_id=\? AND webhook_id=\? AND \(event_ms,event_id\)>\(\?,\?\)\)/,
  ],
  [
    "the attempts of some deliveries",
    (db) => attemptsOf(db, webhook, sql`${"evt_a"}, ${"evt_b"}`),
    /autoindex_webhook_attempt_1 \(org_id=\? AND webhook_id=\? AND event_id=\?\)/,
  ],
  ["deliveries that are no longer kept", (db) => hasOldDelivery(db, 1), /webhook_delivery_age \(touch_ms<\?\)/],
  ["how many deliveries are pending", (db) => countPending(db), /COVERING INDEX webhook_delivery_(due|leased)/],
  [
    "a page of the agents of a namespace",
    (db) => listAgents(db, org, { capability: "", name: "", namespace: "n" }, ["agt_a"], 51),
    /agent_namespace \(org_id=\? AND namespace=\? AND agent_id>\?\)/,
  ],
  [
    "a page of the agents of a capability in a namespace",
    (db) => listAgents(db, org, { capability: "c", name: "", namespace: "n" }, ["agt_a"], 51),
    /c USING .*\(org_id=\? AND capability=\? AND agent_id>\?\)\n.*autoindex_agent_1 \(org_id=\? AND agent_id=\?\)/,
  ],
  [
    "a page of the contracts of a namespace",
    (db) => listContracts(db, org, { contractId: "", capability: "", namespace: "n" }, ["c", 1, "1.0.0"], 51),
    /contract_namespace \(org_id=\? AND namespace=\? AND \(contract_id,create_ms,version\)>\(\?,\?,\?\)\)/,
  ],
  [
    "a page of namespaces of capabilities",
    (db) => listFamilies(db, org, ["a"], 51),
    /autoindex_federation_namespace_1 \(org_id=\? AND name>\?\)/,
  ],
  [
    "how many there are of them",
    (db) => countFamilies(db, org, 1_000),
    /autoindex_federation_namespace_1 \(org_id=\?\)/,
  ],
  [
    "a grant, from either side",
    (db) => findGrant(db, org, "grt_a"),
    /autoindex_federation_grant_1 \(org_id=\? AND grant_id=\?\)[\s\S]*federation_grant_received \(grantee_org_id=\? AND grant_id=\?\)/,
  ],
  [
    "a page of grants",
    (db) => listGrants(db, org, anyGrant, 1, ["grt_z"], 51),
    /autoindex_federation_grant_1 \(org_id=\? AND grant_id<\?\)[\s\S]*federation_grant_received \(grantee_org_id=\? AND grant_id<\?\)/,
  ],
  [
    "a page of grants in one state",
    (db) => listGrants(db, org, { ...anyGrant, state: 2 }, 1, ["grt_z"], 51),
    /federation_grant_state \(org_id=\? AND state=\? AND grant_id<\?\)[\s\S]*grant_received_state \(grantee_org_id=\? AND state=\? AND grant_id<\?\)/,
  ],
  [
    "a page of grants that are over, written down or not",
    (db) => listGrants(db, org, { ...anyGrant, state: 6 }, 1, ["grt_z"], 51),
    /(federation_grant_state \(org_id=\? AND state=\? AND grant_id<\?\)[\s\S]*){4}(grant_received_state \(grantee_org_id=\? AND state=\? AND grant_id<\?\)[\s\S]*){4}/,
  ],
  [
    "a page of the grants with one organisation in one state",
    (db) => listGrants(db, org, { ...anyGrant, counterpartyOrgId: "org_b", state: 2 }, 1, ["grt_z"], 51),
    /(grant_received_from \(grantee_org_id=\? AND org_id=\? AND grant_id<\?\)[\s\S]*){2}/,
  ],
  [
    "grants whose time is over",
    (db) => dueGrants(db, 1, [0, "grt_a"], 100),
    /federation_grant_due \(expire_ms>\? AND expire_ms<\?\)/,
  ],
  [
    "how many grants have not ended",
    (db) => countLiveGrants(db, org, 1_000),
    /federation_grant_state \(org_id=\? AND state<\?\)/,
  ],
  [
    "how many proposals are open",
    (db) => countProposals(db, org, "org_b"),
    /federation_grant_state \(org_id=\? AND state=\?\)/,
  ],
  [
    "a page of the revisions of a grant",
    (db) => listRevisions(db, grant, [9], 51),
    /autoindex_federation_grant_revision_1 \(org_id=\? AND grant_id=\? AND revision<\?\)/,
  ],
  [
    "a page of the usage of a grant",
    (db) => listUsage(db, { orgId: org, grantId: "grt_a" }, days, [9], 51),
    /autoindex_federation_grant_usage_1 \(org_id=\? AND grant_id=\? AND day_ms>\? AND day_ms<\?\)/,
  ],
  ["how many namespaces an agent owns", (db) => countNamespaces(db, org, "agt_a", 100), /COVERING INDEX memory_agent/],
  [
    "a page of the agents of an organisation",
    agents(org, {}, 1, ["agt_z"]),
    /autoindex_directory_profile_1 \(org_id=\? AND agent_id<\?\)/,
  ],
  [
    "a page of them by reputation, of one tier",
    agents(org, { tier: 4 }, 2, [5_000, "agt_z"]),
    /directory_reputation \(org_id=\? AND \(reputation_milli,agent_id\)<\(\?,\?\)\)/,
  ],
  [
    "a page of them by their last activity",
    agents(org, { available: true }, 3, [5_000, "agt_z"]),
    /directory_seen \(org_id=\? AND \(last_seen_ms,agent_id\)<\(\?,\?\)\)/,
  ],
  ["a page of public agents", agents(undefined, {}, 1, ["agt_z"]), /directory_public \(agent_id<\?\)/],
  [
    "a page of public agents by reputation",
    agents(undefined, { minMilli: 4_000 }, 2, [5_000, "agt_z"]),
    /directory_public_reputation \(/,
  ],
  [
    "a page of public agents by their last activity",
    agents(undefined, {}, 3, [9, "agt_z"]),
    /directory_public_seen \(/,
  ],
  [
    "agents with a capability",
    agents(org, { capabilities: ["a", "b"] }, 1, ["agt_z"]),
    /SEARCH c USING (COVERING )?INDEX directory_capability_best \(org_id=\? AND capability=\?\)|c USING PRIMARY KEY \(org_id=\? AND capability=\?\)/,
  ],
  [
    "public agents with capabilities that begin so",
    agents(undefined, { prefix: "a" }, 1, ["agt_z"]),
    /directory_capability_public \(capability>\? AND capability<\?\)/,
  ],
  ["agents by their words", agents(org, { words: ["a"] }, 1, ["agt_z"]), /directory_words VIRTUAL TABLE INDEX/],
  [
    "agents in need",
    (db) => agentsInNeed(db, { orgId: org, asAgentId: "agt_a" }, ["a", "b"], 1),
    /directory_capability_best \(org_id=\? AND capability=\? AND reputation_milli>\?\)/,
  ],
  ["the latest tasks of agents", (db) => recentWork(db, [1, 2]), /task_target \(org_id=\? AND target_agent_id=\?\)/],
  ["a public profile", (db) => findPublicProfile(db, "agt_a"), /directory_public \(agent_id=\?\)/],
  [
    "a page of invites",
    (db) => listInvites(db, org, 1, ["inv_z"], 51),
    /invite USING INDEX invite_id \(org_id=\? AND invite_id<\?\)/,
  ],
  ["how many invites there are", (db) => countLiveInvites(db, org, 1, 10), /invite_org \(org_id=\? AND expire_ms>\?\)/],
  [
    "the statistics of an agent",
    (db) => readStats(db, org, "agt_a"),
    /memory_agent \(org_id=\? AND agent_id=\? AND namespace>\?\)[\s\S]*s USING PRIMARY KEY \(org_id=\? AND memory_id=\?\)[\s\S]*task_caller \(org_id=\? AND caller_agent_id=\?\)[\s\S]*task_target \(org_id=\?[\s\S]*webhook_agent \(org_id=\? AND agent_id=\?\)[\s\S]*queue_schedule_agent \(org_id=\? AND agent_id=\?\)/,
  ],
  [
    "the checks of a span of time",
    (db) => readChecks(db, 1, 9),
    /self_check USING INTEGER PRIMARY KEY \(rowid>\? AND rowid<\?\)/,
  ],
  [
    "the checks of a span of time, by the hour",
    (db) => readCheckSlices(db, 1, 9, 60),
    /self_check USING INTEGER PRIMARY KEY \(rowid>\? AND rowid<\?\)/,
  ],
  [
    "a page of contacts",
    (db) => listContacts(db, org, ["con_z"], 51),
    /contact USING PRIMARY KEY \(org_id=\? AND contact_id<\?\)/,
  ],
  [
    "what is to be mailed",
    (db) => dueMail(db, org, 1),
    /contact USING INDEX contact_mail \(org_id=\? AND mail_due_ms<\?\)/,
  ],
  [
    "a page of collaborations",
    (db) => listCollaborations(db, org, "agt_a", 0, ["col_z"], 51),
    /collaboration_given \(org_id=\? AND agent_id=\? AND collaboration_id<\?\)[\s\S]*collaboration_received \(partner_org_id=\? AND partner_agent_id=\? AND collaboration_id<\?\)/,
  ],
  [
    "a task of the marketplace",
    (db) => findTask(db, "mkt_a"),
    /t USING INDEX marketplace_task_anywhere \(task_id=\?\)/,
  ],
  ["tasks of the marketplace in a state", tasks({}), /marketplace_task_state \(state=\? AND seq<\?\)/],
  [
    "tasks of the marketplace of a category",
    tasks({ category: "c", minReward: 5n }),
    /marketplace_task_category \(state=\? AND category=\? AND seq<\?\)/,
  ],
  ["tasks of the marketplace by words", tasks({ words: ["a"] }), /marketplace_words VIRTUAL TABLE INDEX/],
  [
    "the tasks that an organisation posted",
    tasks({ state: 0, side: { of: "creator", orgId: org, agentId: "" } }),
    /marketplace_task_org \(org_id=\? AND seq<\?\)/,
  ],
  [
    "the tasks that an agent posted",
    tasks({ state: 0, side: { of: "creator", ...mine } }),
    /marketplace_task_creator \(org_id=\? AND creator_agent_id=\? AND seq<\?\)/,
  ],
  [
    "the tasks that the agents of an organisation work on",
    tasks({ state: 0, side: { of: "worker", orgId: org, agentId: "" } }),
    /marketplace_task_worker_org \(worker_org_id=\? AND seq<\?\)/,
  ],
  [
    "the tasks that an agent works on",
    tasks({ state: 0, side: { of: "worker", ...mine } }),
    /marketplace_task_worker \(worker_org_id=\? AND worker_agent_id=\? AND seq<\?\)/,
  ],
  ["how many tasks have not ended", (db) => countLive(db, org), /marketplace_task_live \(org_id=\?\)/],
  [
    "how many tasks an agent has claimed",
    (db) => countClaims(db, org, "agt_a"),
    /marketplace_task_claims \(worker_org_id=\? AND worker_agent_id=\?\)/,
  ],
  [
    "tasks of the marketplace whose time has come",
    (db) => dueTasks(db, 5, { due_ms: 1, seq: 1 }, 100),
    /marketplace_task_due \(/,
  ],
  [
    "the latest result of a worker",
    (db) => lastDelivery(db, { orgId: org, taskId: "mkt_a", number: 7 }, mine),
    /autoindex_marketplace_delivery_1 \(org_id=\? AND task_id=\? AND number<\?\)/,
  ],
  [
    "how many results of a worker were rejected",
    (db) => countVerdicts(db, org, "mkt_a", mine, 2),
    /autoindex_marketplace_delivery_1 \(org_id=\? AND task_id=\?\)/,
  ],
  [
    "who wrote to whom in a thread",
    (db) =>
      checkEvidence(db, org, { kind: "thread", id: "t" }, { agentId: "agt_a", partnerId: "agt_b" }).catch(() => {}),
    /relay_message_thread \(org_id=\? AND sender_agent_id=\? AND thread_id=\? AND log_id=\?\)[\s\S]*relay_message_thread \(org_id=\? AND sender_agent_id=\? AND thread_id=\? AND log_id>\?/,
  ],
  [
    "a page of scenarios",
    (db) => listScenarios(db, org, { pattern: 1, state: 2 }, ["scn_z"], 51),
    /s USING (PRIMARY KEY|INDEX lab_scenario_running) \(org_id=\? AND scenario_id<\?\)[\s\S]*b USING .*PRIMARY KEY \(org_id=\? AND scenario_id=\?\)/,
  ],
  ["a scenario", (db) => findScenario(db, org, "scn_a"), /s USING PRIMARY KEY \(org_id=\? AND scenario_id=\?\)/],
  [
    "the results of a run",
    (db) => findResults(db, org, "scn_a"),
    /lab_scenario USING PRIMARY KEY \(org_id=\? AND scenario_id=\?\)/,
  ],
  ["how many scenarios run", (db) => countRunning(db, org), /lab_scenario_running \(org_id=\?\)/],
  ["runs without a server", (db) => orphanedRuns(db, "srv_a", 1, 100), /lab_scenario_running/],
  ["what is left of runs", (db) => sandboxesToRemove(db, "srv_a", 1, 100), /SCAN b/],
  [
    "following a scenario",
    (db) => readScenarioEvents(db, org, "scn_a", 5, 256),
    /lab_event USING PRIMARY KEY \(org_id=\? AND scenario_id=\? AND sequence>\?\)/,
  ],
])("%s goes along its index and looks at no other rows", async (_what, read, index) => {
  const plan = await planOf(read);
  expect(plan.join("\n")).toMatch(index);
  const scans = plan.filter(
    (line) =>
      /^SCAN /.test(line) &&
      !/^SCAN (asked|chosen$|own$|one$|json_each|(directory|exchange|marketplace)_words VIRTUAL TABLE INDEX 0:M|given|either|found|of_models|latest|live|b$|d$|k$|w$|walk$|webhook_delivery USING COVERING INDEX webhook_delivery_due$|m$|c LEFT-JOIN|counted|(\d+ )?CONSTANT ROWS?$|\d+-ROW VALUES CLAUSE|task USING INDEX task_open|agent_circuit USING COVERING INDEX agent_circuit_not_closed|federation_grant USING COVERING INDEX federation_grant_unsettled$|federation_peer USING INDEX federation_peer_unsettled$|s USING INDEX lab_scenario_running$|lease|\(subquery)/.test(
        line,
      ),
  );
  expect(scans).toEqual([]);
});

/** The plans of all queries that a store function makes. */
async function planOf(read: (db: Queryable) => Promise<unknown>): Promise<string[]> {
  const db = world.server.app.db.query;
  const queries: Sql[] = [];
  const recorder: Queryable = {
    dialect: db.dialect,
    all: (q) => {
      queries.push(q);
      return db.all(q);
    },
    one: (q) => {
      queries.push(q);
      return db.one(q);
    },
  };
  await read(recorder);
  const lines: string[] = [];
  for (const q of queries) {
    const rows = await db.all<{ detail: string }>(sql`explain query plan ${q}`);
    lines.push(...rows.map(({ detail }) => detail));
  }
  return lines;
}
