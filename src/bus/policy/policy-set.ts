/** Many policies as one: cut up so that a question meets only those that can say something to it. */
import { createHash, hash } from "node:crypto";
import type { Cedar, CedarOutcome, CedarRequest, Chunk } from "./cedar.ts";
import { type Statement, uidText } from "./statement.ts";

/** The policies of one origin, at one revision. */
export type PolicySet = {
  readonly revision: number;
  readonly statements: ReadonlyMap<string, Statement>;
  /** Bytes of all texts. */
  readonly bytes: number;
  /** The policies that speak of an action. */
  readonly slice: (action: string) => Slice;
};

/** The policies of a set that speak of one action. */
export type Slice = {
  readonly general: readonly Chunk[];
  /** Those whose head names one principal or one resource, by its {@link uidText}. */
  readonly named: ReadonlyMap<string, readonly Chunk[]>;
  /** The circumstances that any of them looks at; null: all. */
  readonly context: ReadonlySet<string> | null;
};

/** About how many policies are compiled together: a change compiles one such chunk again, and each costs a call. */
const chunkSize = 64;

export function policySet(revision: number, list: readonly Statement[]): PolicySet {
  const slices = new Map<string, Slice>();
  return {
    revision,
    statements: new Map(list.map((statement) => [statement.policyId, statement])),
    bytes: list.reduce((sum, { text }) => sum + text.length, 0),
    slice(action) {
      const known = slices.get(action);
      if (known) return known;
      const made = sliceOf(list.filter(({ facts }) => facts.actions === null || facts.actions.includes(action)));
      slices.set(action, made);
      return made;
    },
  };
}

function sliceOf(list: readonly Statement[]): Slice {
  // One that names both is found by its principal.
  const byName = Map.groupBy(list, ({ facts }) => facts.principal ?? facts.resource ?? "");
  const general = byName.get("") ?? [];
  byName.delete("");
  const all = list.some(({ facts }) => facts.context === null);
  return {
    general: chunksOf(general),
    named: new Map([...byName].map(([name, statements]) => [name, chunksOf(statements)])),
    context: all ? null : new Set(list.flatMap(({ facts }) => facts.context!)),
  };
}

/** Policies go into chunks by a digest of their ids, so that one more or less leaves most chunks as they were. */
function chunksOf(list: readonly Statement[]): Chunk[] {
  const chunks = 2 ** Math.max(0, Math.ceil(Math.log2(list.length / chunkSize)));
  const grouped = Map.groupBy(list, ({ policyId }) =>
    chunks === 1 ? 0 : hash("sha1", policyId, "buffer").readUInt32LE() % chunks,
  );
  return [...grouped.values()].map(toChunk);
}

function toChunk(list: readonly Statement[]): Chunk {
  const digest = createHash("sha256");
  for (const { policyId, text } of list) digest.update(JSON.stringify([policyId, text]));
  return {
    key: digest.digest("base64"),
    policies: Object.fromEntries(list.map(({ policyId, text }) => [policyId, text])),
    bytes: list.reduce((sum, { text }) => sum + text.length, 0),
  };
}

/**
 * Decides by the chunks that can match. What Cedar says to all policies together is what follows from each part: a forbid of any part forbids, and the
 * policies that permit are those of all parts; so nothing is lost by cutting.
 */
export function evaluate(cedar: Cedar, { general, named }: Slice, request: CedarRequest): CedarOutcome[] {
  const names = [uidText(request.principal as Uid), uidText(request.resource as Uid)];
  return [general, ...names.map((name) => named.get(name) ?? [])].flat().map((chunk) => cedar.decide(chunk, request));
}

type Uid = { readonly type: string; readonly id: string };
