import { createHash } from "node:crypto";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import { Role } from "../../gen/moltwire/api/v1/access_pb.ts";
import {
  type AgentMatchSchema,
  AgentOrder,
  type DirectoryService,
} from "../../gen/moltwire/directory/v1/directory_service_pb.ts";
import type { App } from "../app.ts";
import { badField } from "../errors.ts";
import { holdsScope } from "../rpc/access.ts";
import type { Caller } from "../rpc/caller.ts";
import { defaultPageSize } from "../rpc/page.ts";
import { type Query, query } from "../rpc/query.ts";
import { seesWholeOrg } from "../rpc/scope.ts";
import { availabilityAt } from "./availability.ts";
import { type Candidate, factorsOf, scoreOf } from "./match.ts";
import { agentsInNeed, recentWork, type WorkRow } from "./match-store.ts";
import { type ProfileRow, toProfile } from "./profile-store.ts";
import { type Filter, noFilter, type Scope, searchProfiles } from "./search-store.ts";
import { maxSearchWords, wordsOf } from "./words.ts";

const defaultMatches = 10;

export const searches = (
  app: App,
): Pick<ServiceImpl<typeof DirectoryService>, "listAgents" | "searchAgents" | "matchAgents"> => ({
  listAgents: query(app, (req, given) => page(app, "ListAgents", req, noFilter, given)),

  searchAgents: query(app, async (req, given) => {
    const words = wordsOf(req.text);
    if (req.text.trim() !== "" && words.length === 0) throw badField("text", "needs a word of letters or digits");
    if (words.length > maxSearchWords) throw badField("text", `at most ${maxSearchWords} words`);
    return page(app, "SearchAgents", req, filterOf(req, words), given);
  }),

  matchAgents: query(app, async (req, { db, caller, orgId, now }) => {
    const scope = scopeOf(caller, orgId, req.allOrganizations);
    const { needs } = req;
    const found = await agentsInNeed(db, scope, needs, milliOf(req.minReputation));
    const rows = found.filter(({ agent_id }) => agent_id !== caller.agentId);
    const own = rows.filter(({ org_id }) => !isForeign(caller, org_id));
    const work = new Map(
      (own.length > 0
        ? await recentWork(
            db,
            own.map(({ seq }) => seq),
          )
        : []
      ).map((row) => [row.seq, row]),
    );
    const matches = rows.map((row): MessageInitShape<typeof AgentMatchSchema> & { readonly score: number } => {
      const foreign = isForeign(caller, row.org_id);
      const factors = factorsOf(candidateOf(row, work.get(row.seq), now), needs, foreign);
      return { profile: toProfile(row, now, foreign), score: scoreOf(factors), factors };
    });
    // In the order of their ids so far, and the sort is stable.
    matches.sort((a, b) => b.score - a.score);
    return { matches: matches.slice(0, req.maxMatches || defaultMatches) };
  }),
});

type Listing = {
  readonly allOrganizations: boolean;
  readonly order: AgentOrder;
  readonly pageSize: number;
  readonly pageToken: string;
};

/** One page of the profiles that fit. Its token is good for the same caller, filter and order. */
async function page(app: App, method: string, req: Listing, filter: Filter, { db, caller, orgId, now }: Query) {
  const scope = scopeOf(caller, orgId, req.allOrganizations);
  const order = req.order || AgentOrder.NEWEST;
  const asked = createHash("sha256").update(JSON.stringify(filter)).digest("base64url");
  const place = [method, scope.orgId ?? "*", scope.asAgentId ?? "", caller.orgId, String(order), asked];
  const after = req.pageToken ? app.cursors.decode(place, req.pageToken, "page_token") : undefined;
  const { rows, next } = await searchProfiles(db, scope, filter, order, after, req.pageSize || defaultPageSize, now);
  return {
    profiles: rows.map((row) => toProfile(row, now, isForeign(caller, row.org_id))),
    nextPageToken: next ? app.cursors.encode(place, next) : "",
  };
}

/**
 * What the caller may look at: its organisation, of which an administrator sees all, or what is public. The methods are everybody's, so a key that may not read
 * the directory sees what is seen without one.
 */
const scopeOf = (caller: Caller, orgId: string, all: boolean): Scope => {
  const reads = caller.role !== Role.PUBLIC && holdsScope(caller.scopes, "directory:read");
  return {
    orgId: all || !reads ? undefined : orgId,
    asAgentId: reads && seesWholeOrg(caller) ? undefined : caller.agentId,
  };
};

const isForeign = (caller: Caller, orgId: string): boolean => caller.orgId !== orgId && caller.role !== Role.OPERATOR;

const milliOf = (reputation: number): number => Math.round(reputation * 1_000);

type Search = Parameters<ServiceImpl<typeof DirectoryService>["searchAgents"]>[0];

const filterOf = (req: Search, words: readonly string[]): Filter => ({
  words,
  capabilities: req.capabilities,
  prefix: req.capabilityPrefix,
  available: req.available,
  minMilli: milliOf(req.minReputation),
  tier: req.trustTier,
  activeSinceMs: req.activeSinceTime && timestampMs(req.activeSinceTime),
});

const candidateOf = (row: ProfileRow, work: WorkRow | undefined, now: number): Candidate => ({
  granted: JSON.parse(row.granted) as string[],
  advertised: JSON.parse(row.capabilities) as string[],
  availability: availabilityAt(row, now).availability,
  reputation: row.reputation_milli / 1_000,
  ratings: row.ratings,
  openTasks: work?.open,
  latencyMs: work?.latency_ms ?? undefined,
});
