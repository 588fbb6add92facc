import { timestampMs } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import type { CostService, RateChange } from "../../../gen/moltwire/bus/v1/cost_service_pb.ts";
import type { App } from "../../app.ts";
import type { Queryable, Tx } from "../../db/db.ts";
import { badField, Fault, notFound } from "../../errors.ts";
import type { Caller } from "../../rpc/caller.ts";
import { command } from "../../rpc/command.ts";
import { readPage } from "../../rpc/page.ts";
import { query } from "../../rpc/query.ts";
import { seesWholeOrg } from "../../rpc/scope.ts";
import { findAgent } from "../agent-store.ts";
import { findTrace, takesPart } from "../trace-store.ts";
import {
  agentModels,
  agentTotals,
  hasCosts,
  listAgentDays,
  toStepCost,
  toTotals,
  traceSteps,
  traceTotals,
  type Window,
} from "./cost-store.ts";
import { dayMs, dayStart, dayText, parseDay } from "./day.ts";
import { countLiveRates, findRate, lockRates, putRate, type RateRow, ratesOfAgent, toRate } from "./rate-store.ts";

const maxRatesPerOrg = 10_000;
const maxWindowDays = 366;
const defaultWindowDays = 30;
/** How many models and how many rates of an agent are told. */
const maxNamed = 250;

export const costHandler = (app: App): ServiceImpl<typeof CostService> => ({
  getAgentCosts: query(app, async (req, { db, caller, orgId, now }) => {
    const agentId = req.agentId || caller.agentId;
    if (!agentId) throw badField("agent_id", "name the agent: this key is bound to none");
    const window = windowOf(req, now);
    if (!(await isReadable(db, caller, orgId, agentId))) throw notFound("agent", agentId);
    const models = await agentModels(db, orgId, agentId, window, maxNamed);
    return {
      agentId,
      startDate: dayText(window.startMs),
      endDate: dayText(window.endMs),
      totals: toTotals(await agentTotals(db, orgId, agentId, window)),
      models: models.map((row) => ({ model: row.model, totals: toTotals(row) })),
      rates: (await ratesOfAgent(db, orgId, agentId, now, maxNamed)).map(toRate),
    };
  }),

  listAgentCosts: query(app, async (req, { db, caller, orgId, now }) => {
    const window = windowOf(req, now);
    const agentId = seesWholeOrg(caller) ? req.agentId : caller.agentId;
    if (req.agentId && req.agentId !== agentId) return { agentCosts: [], nextPageToken: "" };
    const filter = { agentId, model: req.model, window };
    // Without the days that the caller left open: at midnight a walk goes on where it was.
    const scope = ["ListAgentCosts", orgId, agentId, req.model, req.startDate, req.endDate];
    const page = await readPage(
      app.cursors,
      scope,
      req,
      (after, limit) => listAgentDays(db, orgId, filter, after, limit),
      (row) => [row.day_ms, row.agent_id],
    );
    const agentCosts = page.rows.map((row) => ({
      orgId,
      agentId: row.agent_id,
      date: dayText(row.day_ms),
      totals: toTotals(row),
    }));
    return { agentCosts, nextPageToken: page.nextPageToken };
  }),

  getTraceCosts: query(app, async (req, { db, caller, orgId }) => {
    const { traceId } = req;
    const opened = await findTrace(db, orgId, traceId);
    const whole = opened !== undefined && (seesWholeOrg(caller) || opened.opener_agent_id === caller.agentId);
    if (!opened || !(whole || (await takesPart(db, orgId, traceId, caller.agentId)))) throw notFound("trace", traceId);
    const forAgentId = whole ? "" : caller.agentId;
    const page = await readPage(
      app.cursors,
      ["GetTraceCosts", orgId, traceId, forAgentId],
      req,
      (after, limit) => traceSteps(db, orgId, traceId, forAgentId, after, limit),
      (row) => [row.end_ms, row.task_id, row.attempt],
    );
    const totals = toTotals(await traceTotals(db, orgId, traceId, forAgentId));
    return { traceId, totals, steps: page.rows.map(toStepCost), nextPageToken: page.nextPageToken };
  }),

  setRates: command(app, async (req, { tx, orgId, now }) => {
    const rates = req.rates.map((change, index) => toRow(change, index, orgId, now));
    refuseTwice(rates);
    await refuseUnknownAgents(tx, orgId, rates);
    await lockRates(tx, orgId);
    for (const rate of rates) await putRate(tx, rate);
    await refuseTooMany(tx, orgId, now);
    const stored: RateRow[] = [];
    for (const rate of rates) stored.push((await findRate(tx, rate))!);
    return { rates: stored.map(toRate) };
  }),
});

/** An agent sees itself. One that was deleted is found as long as there is something to tell. */
async function isReadable(db: Queryable, caller: Caller, orgId: string, agentId: string): Promise<boolean> {
  if (!seesWholeOrg(caller)) return agentId === caller.agentId;
  return (await findAgent(db, orgId, agentId)) !== undefined || hasCosts(db, orgId, agentId);
}

type Dates = { readonly startDate: string; readonly endDate: string };

/** INVALID_REQUEST for a date that is none, and for a window that is empty or too long. */
function windowOf({ startDate, endDate }: Dates, now: number): Window {
  const endMs = endDate ? dayOf("end_date", endDate) : dayStart(now);
  const startMs = startDate ? dayOf("start_date", startDate) : endMs - (defaultWindowDays - 1) * dayMs;
  const days = (endMs - startMs) / dayMs + 1;
  if (days < 1) throw badField("start_date", `${dayText(startMs)} is after the last day, ${dayText(endMs)}`);
  if (days > maxWindowDays)
    throw badField("start_date", `the window has ${days} days, and at most ${maxWindowDays} are summed`);
  return { startMs, endMs };
}

function dayOf(field: string, text: string): number {
  const day = parseDay(text);
  if (day === undefined) throw badField(field, `${text} is no date`);
  return day;
}

type NewRate = Omit<RateRow, "end_ms">;

function toRow(change: RateChange, index: number, orgId: string, now: number): NewRate {
  const { agentId, model, inherit, inputPer1000TokensMicros: input, outputPer1000TokensMicros: output } = change;
  const effectiveMs = change.effectiveTime ? timestampMs(change.effectiveTime) : now;
  if (effectiveMs < now)
    throw badField(
      `rates[${index}].effective_time`,
      "is in the past: what was counted stays as it is; leave it out for now",
    );
  if (inherit && input !== 0n)
    throw badField(`rates[${index}].input_per_1000_tokens_micros`, "must be 0 with inherit, which sets no price");
  if (inherit && output !== 0n)
    throw badField(`rates[${index}].output_per_1000_tokens_micros`, "must be 0 with inherit, which sets no price");
  return {
    org_id: orgId,
    agent_id: agentId,
    model,
    effective_ms: effectiveMs,
    input_micros: Number(input),
    output_micros: Number(output),
    inherit: inherit ? 1 : 0,
    create_ms: now,
  };
}

function refuseTwice(rates: readonly NewRate[]): void {
  const seen = new Map<string, number>();
  for (const [index, { agent_id, model, effective_ms }] of rates.entries()) {
    const name = JSON.stringify([agent_id, model, effective_ms]);
    const before = seen.get(name);
    if (before !== undefined)
      throw badField(`rates[${index}]`, `is of the same agent, model and time as rates[${before}]`);
    seen.set(name, index);
  }
}

async function refuseUnknownAgents(tx: Tx, orgId: string, rates: readonly NewRate[]): Promise<void> {
  const known = new Set([""]);
  for (const [index, { agent_id: id }] of rates.entries()) {
    if (!known.has(id) && !(await findAgent(tx, orgId, id)))
      throw new Fault("NOT_FOUND", "agent not found", { resource: "agent", id, field: `rates[${index}].agent_id` });
    known.add(id);
  }
}

/** After the change, which a refusal undoes: only then is it known what was replaced. */
async function refuseTooMany(tx: Tx, orgId: string, now: number): Promise<void> {
  if ((await countLiveRates(tx, orgId, now, maxRatesPerOrg + 1)) <= maxRatesPerOrg) return;
  const message = `an organisation has at most ${maxRatesPerOrg} rates that are in effect or to come`;
  const quota = { subject: `organization:${orgId}`, description: message };
  throw new Fault("QUOTA_EXCEEDED", message, { resource: "rates", limit: String(maxRatesPerOrg) }, { quota });
}
