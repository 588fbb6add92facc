/** The rule of the area: may this principal do this with that, in these circumstances? */
import { hash } from "node:crypto";
import type { Queryable } from "../../db/db.ts";
import { type Answer, toAnswer } from "./answer.ts";
import { type Bounded, bounded } from "./bounded.ts";
import { readBuiltins } from "./builtin.ts";
import { type Cedar, type CedarOutcome, type CedarRequest, openCedar } from "./cedar.ts";
import { type ContextValue, type ContextValues, toCedarContext } from "./context.ts";
import type { Entity } from "./entity.ts";
import { evaluate, type PolicySet, policySet, type Slice } from "./policy-set.ts";
import { loadPolicies, policySetRevision, type StoredStatement } from "./policy-store.ts";
import { type Facts, factsOf, factsVersion, type Statement, uidText } from "./statement.ts";
import { readVocabulary, type Vocabulary } from "./vocabulary.ts";

/** A question with everything that its answer can depend on, but the policies. */
export type Question = {
  readonly principal: Entity;
  /** An action of the policy schema. */
  readonly action: string;
  readonly resource: Entity;
  /** The circumstances, as the schema has them for the action; times in milliseconds. */
  readonly context: ContextValues;
  /** What principal and resource name and policies can go on to, such as a requester. */
  readonly related?: readonly Entity[];
};

export type Policies = {
  readonly vocabulary: Vocabulary;
  readonly builtins: PolicySet;
  readonly cedar: Cedar;
  /**
   * What the policies of an organisation say. Reads their revision through `db`, and the policies when they are not at hand: give the transaction of what is
   * decided on, and a change is seen by the first decision after its commit, on every replica. Throws CedarFell or StoredPolicyError when there is
   * no saying: nothing may be done then.
   */
  decide(db: Queryable, orgId: string, question: Question): Promise<Answer>;
  /** The policies of an organisation as they are now. */
  current(db: Queryable, orgId: string): Promise<PolicySet>;
  /** The same, where their revision was read already with something else: reads nothing but policies that are not at hand. */
  at(db: Queryable, orgId: string, revision: number): Promise<PolicySet>;
  /** What this set and the built-in policies say. `memo` keeps the answers; default: the one of all decisions. */
  answer(set: PolicySet, question: Question, memo?: Bounded<Answer>): Answer;
  /** How much is kept, for tests and metrics. */
  readonly kept: () => { readonly sets: number; readonly answers: number; readonly chunks: number };
};

const maxSets = 1_000;
const maxSetBytes = 32 * 1_048_576;
const maxAnswers = 50_000;
/** In characters of keys and texts: about as many bytes, twice at worst. */
const maxAnswerWeight = 32 * 1_048_576;
const answerOverhead = 400;
const longestPlainKey = 1_024;

/** Never changes: read once, however many servers a process has. */
let common: Pick<Policies, "vocabulary" | "builtins"> | undefined;

export function createPolicies(): Policies {
  const cedar = openCedar();
  const { vocabulary, builtins } = (common ??= { vocabulary: readVocabulary(cedar), builtins: readBuiltins(cedar) });
  const sets = bounded<PolicySet>(maxSets, maxSetBytes);
  const answers = bounded<Answer>(maxAnswers, maxAnswerWeight);
  const outcomesOfBuiltins = bounded<readonly CedarOutcome[]>(maxAnswers, maxAnswerWeight);
  // Answers are kept by the set's number: a set that is loaded anew has another, and no answer of a former one is found again.
  const numbers = new WeakMap<PolicySet, number>();
  let lastNumber = 0;
  const numberOf = (set: PolicySet): number => {
    const number = numbers.get(set) ?? ++lastNumber;
    numbers.set(set, number);
    return number;
  };
  const nothing = policySet(0, []);

  const at: Policies["at"] = async (db, orgId, revision) => {
    if (revision === 0) return nothing;
    const known = sets.get(orgId);
    if (known?.revision === revision) return known;
    const loaded = await loadPolicies(db, orgId);
    const made = policySet(
      loaded.revision,
      loaded.statements.map((one) => withFacts(cedar, one)),
    );
    sets.set(orgId, made, made.bytes + 1_024);
    return made;
  };

  const current: Policies["current"] = async (db, orgId) => at(db, orgId, await policySetRevision(db, orgId));

  const answer: Policies["answer"] = (set, question, memo = answers) => {
    const { principal, action, resource, related = [] } = question;
    const [builtin, own] = [builtins.slice(action), set.slice(action)];
    const key = keyOf(numberOf(set), question, [builtin.context, own.context]);
    const known = memo.get(key);
    if (known) return known;
    // Cedar refuses two entities of one name.
    const entities = [...new Map([...related, resource, principal].map((one) => [uidText(one.uid), one])).values()];
    const request: CedarRequest = {
      principal: principal.uid,
      action: { type: "Action", id: action },
      resource: resource.uid,
      context: toCedarContext(question.context),
      entities: entities.map((one) => one.json()),
    };
    const find = (policyId: string): Statement => (builtins.statements.get(policyId) ?? set.statements.get(policyId))!;
    const outcomes = [...builtinOutcomes(question, builtin, request), ...evaluate(cedar, own, request)];
    const made = toAnswer(question, outcomes, find, set.revision);
    memo.set(key, made, answerOverhead + key.length + made.reasons.reduce((sum, { length }) => sum + length, 0));
    return made;
  };

  // Apart, since they look at few circumstances: where the organisation's own look at more, only those are evaluated each time.
  const builtinOutcomes = (question: Question, slice: Slice, request: CedarRequest): readonly CedarOutcome[] => {
    const key = keyOf(0, question, [slice.context]);
    const known = outcomesOfBuiltins.get(key);
    if (known) return known;
    const made = evaluate(cedar, slice, request);
    outcomesOfBuiltins.set(key, made, answerOverhead + key.length);
    return made;
  };

  return {
    vocabulary,
    builtins,
    cedar,
    current,
    at,
    answer,
    decide: async (db, orgId, question) => answer(await current(db, orgId), question),
    kept: () => ({ sets: sets.size(), answers: answers.size(), chunks: cedar.compiled() }),
  };
}

/** Exactly what an answer depends on: the policies, who, what, with what, and the circumstances that some policy on this action looks at. */
function keyOf(set: number, question: Question, looked: readonly (ReadonlySet<string> | null)[]): string {
  const { principal, action, resource, related = [], context } = question;
  const matters: (string | ContextValue)[] = [];
  for (const name of Object.keys(context).sort()) {
    if (looked.some((names) => names === null || names.has(name))) matters.push(name, context[name]!);
  }
  const key = JSON.stringify([set, action, principal.key, resource.key, related.map(({ key }) => key), matters]);
  return key.length > longestPlainKey ? hash("sha256", key, "base64") : key;
}

function withFacts(cedar: Cedar, { facts, ...rest }: StoredStatement): Statement {
  const stored = JSON.parse(facts) as Facts;
  return { ...rest, facts: stored.v === factsVersion ? stored : factsOf(cedar, rest.text) };
}
