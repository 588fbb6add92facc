/** The policy rule by itself: against a naive reading of policies, at its limits, and what it keeps. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { Answer } from "../src/bus/policy/answer.ts";
import { bounded } from "../src/bus/policy/bounded.ts";
import { CedarFell, openCedar } from "../src/bus/policy/cedar.ts";
import { checkPolicy } from "../src/bus/policy/check.ts";
import {
  agentEntity,
  contractEntity,
  type Entity,
  orgEntity,
  ownedEntity,
  toolEntity,
} from "../src/bus/policy/entity.ts";
import { maxNesting, nestingOf } from "../src/bus/policy/nesting.ts";
import { createPolicies, type Question } from "../src/bus/policy/policies.ts";
import { policySet } from "../src/bus/policy/policy-set.ts";
import { factsOf, type Statement } from "../src/bus/policy/statement.ts";

/** Pairs of a policy set and a question: 100,000 with POLICY_PAIRS=100000. */
const pairs = Number(process.env.POLICY_PAIRS ?? 2_000);
const questionsPerSet = 10;

const policies = createPolicies();
const { cedar } = policies;
const tiers = ["INTERNAL_TRUSTED", "INTERNAL_RESTRICTED", "EXTERNAL_PARTNER", "PUBLIC_VENDOR"];
const tools = ["web", "shell", "db"];

/** What the oracle knows of a question. */
type Facts = {
  readonly admin: boolean;
  readonly agent: {
    readonly id: string;
    readonly tier: number;
    readonly tools: readonly string[];
    readonly name: string;
  };
  readonly action: "invoke" | "use_tool" | "claim_job";
  readonly contract: {
    readonly id: string;
    readonly security: number;
    readonly tools: readonly string[];
    readonly partners: readonly string[];
  };
  readonly tool: string;
  readonly queue: { readonly id: string; readonly owner: string; readonly private: boolean };
  readonly tokens: number;
  readonly target: string;
};

/** A condition: its Cedar text, and what it says, which may be that it fails. */
type Condition = { readonly text: string; readonly holds: (facts: Facts) => boolean | "fails" };
type Policy = {
  readonly effect: "permit" | "forbid";
  readonly approval: boolean;
  readonly principal: string;
  readonly action: string;
  readonly resource: string;
  readonly when: Condition;
};

const factsArb: fc.Arbitrary<Facts> = fc.record({
  admin: fc.boolean(),
  agent: fc.record({
    id: fc.constantFrom("agt_1", "agt_2"),
    tier: fc.integer({ min: 1, max: 4 }),
    tools: fc.subarray(tools),
    name: fc.constantFrom("ann", "bob", 'q"uote'),
  }),
  action: fc.constantFrom("invoke", "use_tool", "claim_job"),
  contract: fc.record({
    id: fc.constantFrom("c1", "c2"),
    security: fc.integer({ min: 1, max: 4 }),
    tools: fc.subarray(tools),
    partners: fc.subarray(["agt_1", "agt_2"]),
  }),
  tool: fc.constantFrom(...tools),
  queue: fc.record({
    id: fc.constantFrom("q1", "q2"),
    owner: fc.constantFrom("", "agt_1", "agt_2"),
    private: fc.boolean(),
  }),
  tokens: fc.constantFrom(0, 1, 5, 100, Number.MAX_SAFE_INTEGER),
  target: fc.constantFrom("", "agt_1", "agt_2"),
});

const isAgent = ({ admin, action }: Facts): boolean => !admin || action === "use_tool";
const only = (text: string, holds: Condition["holds"]): Condition => ({ text, holds });
/** What only an agent has: on any other principal the condition does not hold. */
const ofAgent = (text: string, holds: (facts: Facts) => boolean): Condition =>
  only(`(principal is Agent && ${text})`, (facts) => isAgent(facts) && holds(facts));
const ofContract = (text: string, holds: (facts: Facts) => boolean): Condition =>
  only(`(resource is Contract && ${text})`, (facts) => facts.action === "invoke" && holds(facts));

const leaf: fc.Arbitrary<Condition> = fc.oneof(
  fc
    .constantFrom(...tiers)
    .map((tier) => ofAgent(`principal.tier == Tier::"${tier}"`, ({ agent }) => tiers[agent.tier - 1] === tier)),
  fc.integer({ min: 0, max: 5 }).map((rank) => ofAgent(`principal.rank <= ${rank}`, ({ agent }) => agent.tier <= rank)),
  fc
    .constantFrom(...tools)
    .map((tool) => ofAgent(`principal.tools.contains(Tool::"${tool}")`, ({ agent }) => agent.tools.includes(tool))),
  fc
    .constantFrom("ann", "a*", "*b", 'q\\"*')
    .map((like) =>
      ofAgent(`principal.name like "${like}"`, ({ agent }) =>
        like === "*b" ? agent.name.endsWith("b") : agent.name.startsWith(like.replace("*", "").replace("\\", "")),
      ),
    ),
  fc.constantFrom(0, 1, 5, 99).map((tokens) => only(`context.tokens > ${tokens}`, (facts) => facts.tokens > tokens)),
  // Overflows beyond 2^63.
  fc.constant(only("context.tokens * 9007199254740991 >= 0", ({ tokens }) => (tokens > 1_024 ? "fails" : true))),
  fc
    .constantFrom("agt_1", "agt_2")
    .map((id) =>
      ofContract(`context has target_agent_id && context.target_agent_id == "${id}"`, ({ target }) => target === id),
    ),
  fc
    .integer({ min: 1, max: 4 })
    .map((rank) => ofContract(`resource.security_rank >= ${rank}`, ({ contract }) => contract.security >= rank)),
  fc.constant(
    only(
      "(principal is Agent && resource is Contract && principal.tools.containsAll(resource.tools))",
      (facts) =>
        isAgent(facts) &&
        facts.action === "invoke" &&
        facts.contract.tools.every((tool) => facts.agent.tools.includes(tool)),
    ),
  ),
  fc.constant(
    only("(resource is Queue && resource.private)", ({ action, queue }) => action === "claim_job" && queue.private),
  ),
  fc.boolean().map((value) => only(String(value), () => value)),
);

const not = (one: Condition): Condition =>
  only(`!(${one.text})`, (facts) => {
    const held = one.holds(facts);
    return held === "fails" ? "fails" : !held;
  });
/** The second is not looked at when the first decides; what fails before that, fails. */
const both = (word: "&&" | "||", a: Condition, b: Condition): Condition =>
  only(`(${a.text} ${word} ${b.text})`, (facts) => {
    const first = a.holds(facts);
    return first === "fails" || first === (word === "||") ? first : b.holds(facts);
  });
const condition: fc.Arbitrary<Condition> = fc.letrec<{ any: Condition }>((tie) => ({
  any: fc.oneof(
    { maxDepth: 3, depthSize: "small" },
    leaf,
    tie("any").map(not),
    fc.tuple(fc.constantFrom<"&&" | "||">("&&", "||"), tie("any"), tie("any")).map(([word, a, b]) => both(word, a, b)),
  ),
})).any;

const policyArb: fc.Arbitrary<Policy> = fc.record({
  effect: fc.constantFrom("permit", "permit", "forbid"),
  approval: fc.boolean(),
  principal: fc.constantFrom(
    "principal",
    "principal is Agent",
    "principal is Org",
    'principal == Agent::"agt_1"',
    'principal == Org::"org_1"',
    'principal in Org::"org_1"',
    'principal in Org::"org_2"',
  ),
  action: fc.constantFrom(
    "action",
    'action == Action::"invoke"',
    'action in [Action::"invoke", Action::"use_tool"]',
    'action in [Action::"claim_job"]',
  ),
  resource: fc.constantFrom(
    "resource",
    "resource is Contract",
    'resource == Contract::"c1"',
    'resource == Tool::"web"',
    'resource == Queue::"q1"',
    'resource is Queue in Org::"org_1"',
  ),
  when: condition,
});

const textOf = ({ effect, approval, principal, action, resource, when }: Policy): string =>
  `${approval && effect === "permit" ? '@approval("ask")\n' : ""}${effect} (${principal}, ${action}, ${resource}) when { ${when.text} };`;

/** The oracle: reads each policy from top to bottom. */
function says({ principal, action, resource, when }: Policy, facts: Facts): boolean | "fails" {
  const agent = isAgent(facts);
  const heads = [
    {
      principal: true,
      "principal is Agent": agent,
      "principal is Org": !agent,
      'principal == Agent::"agt_1"': agent && facts.agent.id === "agt_1",
      'principal == Org::"org_1"': !agent,
      'principal in Org::"org_1"': true,
    }[principal] ?? false,
    action === "action" || action.includes(`"${facts.action}"`),
    {
      resource: true,
      "resource is Contract": facts.action === "invoke",
      'resource == Contract::"c1"': facts.action === "invoke" && facts.contract.id === "c1",
      'resource == Tool::"web"': facts.action === "use_tool" && facts.tool === "web",
      'resource == Queue::"q1"': facts.action === "claim_job" && facts.queue.id === "q1",
      'resource is Queue in Org::"org_1"': facts.action === "claim_job",
    }[resource] ?? false,
  ];
  return heads.every(Boolean) && when.holds(facts);
}

/** The built-in policies for these three actions, told again. */
function builtinsPermit(facts: Facts): string[] {
  const { agent, contract, queue, tool, action } = facts;
  if (!isAgent(facts)) return ["builtin/administrator"];
  const permits: Record<string, boolean> = {
    "builtin/internal-trusted": action === "invoke" && agent.tier === 1,
    "builtin/internal-restricted": action === "invoke" && agent.tier === 2 && contract.security >= 2,
    "builtin/external-partner": action === "invoke" && agent.tier === 3 && contract.partners.includes(agent.id),
    "builtin/allowed-tools": action === "use_tool" && agent.tools.includes(tool),
    "builtin/own-queues": action === "claim_job" && queue.owner === agent.id,
    "builtin/shared-queues": action === "claim_job" && agent.tier <= 2 && !queue.private,
  };
  return Object.keys(permits).filter((id) => permits[id]);
}

function oracle(set: readonly Policy[], facts: Facts): { verdict: string; ids: string[]; faults: string[] } {
  const told = set.map((policy, index) => ({ policy, id: `p${index}`, said: says(policy, facts) }));
  const faults = told
    .filter(({ said }) => said === "fails")
    .map(({ id }) => id)
    .toSorted();
  const forbids = told.filter(({ policy, said }) => policy.effect === "forbid" && said !== false);
  if (forbids.length > 0) return { verdict: "DENY", ids: forbids.map(({ id }) => id).toSorted(), faults };
  const permits = told.filter(({ policy, said }) => policy.effect === "permit" && said === true);
  const ids = [...permits.map(({ id }) => id), ...builtinsPermit(facts)].toSorted();
  const asked = permits.some(({ policy }) => policy.approval) ? "REQUIRE_APPROVAL" : "ALLOW";
  return { verdict: ids.length === 0 ? "DENY" : asked, ids, faults };
}

function toQuestion(facts: Facts): Question {
  const { agent, contract, queue } = facts;
  const org = "org_1";
  const principal = isAgent(facts)
    ? agentEntity({
        org_id: org,
        agent_id: agent.id,
        name: agent.name,
        trust_tier: agent.tier,
        capabilities: "[]",
        allowed_tools: JSON.stringify(agent.tools),
        disabled: 0,
      })
    : orgEntity(org);
  const resources: Record<Facts["action"], () => Entity> = {
    invoke: () =>
      contractEntity({
        org_id: org,
        contract_id: contract.id,
        version: "1.0.0",
        capability: "c",
        security_class: contract.security,
        required_tools: JSON.stringify(contract.tools),
        approval_required: 0,
        partner_agent_ids: JSON.stringify(contract.partners),
      }),
    use_tool: () => toolEntity(facts.tool, org),
    claim_job: () =>
      ownedEntity("Queue", queue.id, org, {
        private: queue.private,
        ...(queue.owner && { owner: { __entity: { type: "Agent", id: queue.owner } } }),
      }),
  };
  const common = { tokens: facts.tokens, origin: "bus", time: { ms: facts.tokens % 1_000 } };
  const invoke = { contract_version: "1.0.0", ...(facts.target && { target_agent_id: facts.target }) };
  return {
    principal,
    action: facts.action,
    resource: resources[facts.action](),
    context: facts.action === "invoke" ? { ...common, ...invoke } : common,
  };
}

const statement = (policyId: string, text: string): Statement => ({
  policyId,
  revision: 1,
  text,
  description: "",
  facts: factsOf(cedar, text),
});

describe("the policy rule", () => {
  test(`says what a naive reading of ${pairs} policy sets and questions says, in sets small and large, asked once and again`, () => {
    const sizes = fc.oneof({ weight: 9, arbitrary: fc.constant(8) }, { weight: 1, arbitrary: fc.constant(150) });
    const sets = sizes.chain((maxLength) => fc.array(policyArb, { maxLength, size: "max" }));
    fc.assert(
      fc.property(
        sets,
        fc.array(factsArb, { minLength: questionsPerSet, maxLength: questionsPerSet }),
        (generated, asked) => {
          const set = policySet(
            1,
            generated.map((policy, index) => statement(`p${index}`, textOf(policy))),
          );
          for (const facts of [...asked, ...asked]) {
            const { verdict, determining, faults } = policies.answer(set, toQuestion(facts));
            const expected = oracle(generated, facts);
            expect(verdict).toBe(expected.verdict);
            expect(faults.map(({ policyId }) => policyId).toSorted()).toEqual(expected.faults.slice(0, 50));
            const named = determining.map(({ policyId }) => policyId).toSorted();
            if (expected.ids.length <= 50) expect(named).toEqual(expected.ids);
            else expect(expected.ids).toEqual(expect.arrayContaining(named));
          }
        },
      ),
      { numRuns: Math.ceil(pairs / questionsPerSet) },
    );
  }, 3_600_000);

  test("keeps an answer for as long as nothing it depends on has changed, whatever else does", () => {
    const base = {
      admin: false,
      action: "invoke",
      tool: "web",
      tokens: 1,
      target: "",
      queue: { id: "q1", owner: "", private: false },
    } as const;
    const agent = { id: "agt_1", tier: 3, tools: ["web"], name: "ann" };
    const contract = { id: "c1", security: 4, tools: [], partners: [] };
    const set = policySet(1, [
      statement(
        "a",
        'forbid (principal is Agent, action == Action::"use_tool", resource) when { context.tokens > 5 };',
      ),
    ]);
    const other = policySet(2, [...set.statements.values()]);
    const memo = bounded<Answer>(100, 1_000_000);
    const ask = (changes: Partial<Facts> = {}, of = set) =>
      policies.answer(of, toQuestion({ ...base, agent, contract, ...changes }), memo);
    const first = ask();
    // No policy on invoke looks at tokens or time.
    expect(ask({ tokens: 100 })).toBe(first);
    expect(ask({ tool: "shell", queue: { id: "q2", owner: "agt_1", private: true } })).toBe(first);
    expect(ask({ action: "use_tool", tokens: 100 }).verdict).toBe("DENY");
    expect(ask({ action: "use_tool", tokens: 1 }).verdict).toBe("ALLOW");
    const size = memo.size();
    expect(ask({ agent: { ...agent, tier: 1 } }).verdict).toBe("ALLOW");
    expect(ask({ contract: { ...contract, partners: ["agt_1"] } }).verdict).toBe("ALLOW");
    expect(ask({ agent: { ...agent, name: "bob" } })).not.toBe(first);
    expect(ask({}, other)).not.toBe(first);
    expect(memo.size()).toBe(size + 4);
  });

  test("one more policy compiles one more chunk, and not the set again", () => {
    const own = createPolicies();
    const all = Array.from({ length: 500 }, (_, i) =>
      statement(
        `p${i}`,
        `forbid (principal is Agent, action == Action::"claim_job", resource) when { principal.name == "n${i}" };`,
      ),
    );
    const asked = toQuestion({
      admin: false,
      agent: { id: "agt_1", tier: 1, tools: [], name: "n7" },
      action: "claim_job",
      tool: "web",
      tokens: 0,
      target: "",
      contract: { id: "c1", security: 1, tools: [], partners: [] },
      queue: { id: "q1", owner: "", private: false },
    });
    expect(own.answer(policySet(1, all), asked).determining).toMatchObject([{ policyId: "p7" }]);
    const before = own.kept().chunks;
    expect(before).toBeGreaterThan(4);
    const fewer = all.filter(({ policyId }) => policyId !== "p7");
    expect(own.answer(policySet(2, fewer), asked).verdict).toBe("ALLOW");
    expect(own.kept().chunks).toBe(before + 1);
  });
});

test.each<[string, object]>([
  [
    'permit (principal, action, resource) when { context has grant_id && context.grant_id == "g" };',
    { actions: null, context: ["grant_id"] },
  ],
  [
    'permit (principal, action, resource) when { context["tokens"] > 1 } unless { context.origin like "b*" };',
    { context: ["origin", "tokens"] },
  ],
  [
    "permit (principal, action, resource) when { if [1, 2].contains(1) then {a: context}.a has time else false };",
    { context: null },
  ],
  ["permit (principal, action, resource) when { (if true then context else context).tokens > 1 };", { context: null }],
  ['permit (principal, action, resource) when { resource.context == "x" && "context.tokens" == "" };', { context: [] }],
  [
    'forbid (principal == Agent::"a\\"b", action in [Action::"invoke", Action::"deny"], resource == Tool::"t");',
    { effect: "forbid", actions: ["invoke", "deny"], principal: 'Agent::"a\\"b"', resource: 'Tool::"t"' },
  ],
  [
    '@approval permit (principal in Org::"o", action in Action::"invoke", resource is Tool);',
    { approval: "somebody has to approve it", actions: ["invoke"], principal: null, resource: null },
  ],
  ['@approval("ask") forbid (principal, action == Action::"invoke", resource);', { approval: null }],
])("of %s is known what it can speak to", (text, facts) => {
  expect(factsOf(cedar, text)).toMatchObject(facts);
});

describe("a text that is nested", () => {
  const shapes: [string, (n: number) => string][] = [
    ["brackets", (n) => `${"(".repeat(n)}true${")".repeat(n)}`],
    ["negations in brackets", (n) => `${"!(".repeat(n)}true${")".repeat(n)}`],
    ["sets", (n) => `${"[".repeat(n)}1${"]".repeat(n)}.isEmpty()`],
    ["records", (n) => `${"{a:".repeat(n)}1${"}".repeat(n)} == 1`],
    ["sums", (n) => `${"context.tokens + ".repeat(n)}1 > 1`],
    ["conditions", (n) => `${"if true then true else ".repeat(n)}true`],
    ["conditions of conditions", (n) => `${"if ".repeat(n)}true${" then true else true".repeat(n)}`],
    ["members", (n) => `context${".a".repeat(n)} == 1`],
    ["members by name", (n) => `context${'["a"]'.repeat(n)} == 1`],
    ["calls", (n) => `[1]${".contains(1)".repeat(n)}`],
    ["ands of what has to be looked at", (n) => `${"context.tokens > 0 && ".repeat(n)}true`],
    ["ors of what has to be looked at", (n) => `${"context.tokens > 1 || ".repeat(n)}true`],
    ["conditions of what has to be looked at", (n) => `${"if context.tokens > 1 then true else ".repeat(n)}true`],
    ["conditions in conditions", (n) => `${"(if context.tokens > 0 then ".repeat(n)}true${" else false)".repeat(n)}`],
    ["negations of what has to be looked at", (n) => `${"!(".repeat(n)}context.tokens > 0${")".repeat(n)}`],
    ["products", (n) => `${"context.tokens * ".repeat(n)}1 > 0`],
    ["records that are read", (n) => `${"{a: ".repeat(n)}context.tokens${"}.a".repeat(n)} > 0`],
    ["ands in brackets", (n) => `${"(context.tokens > 0 && ".repeat(n)}true${")".repeat(n)}`],
    ["ands", (n) => `${"true && ".repeat(n)}true`],
    ["ors in sums in brackets", (n) => `${"(true || 1 + ".repeat(n)}1${")".repeat(n)}`],
    ["whens", (n) => `true } ${"when { true } ".repeat(n)}when { true`],
    ["minuses", (n) => `${"-(".repeat(n)}1${")".repeat(n)} == 1`],
  ];
  const policyOf = (inner: string) => `permit (principal, action, resource) when { ${inner} };`;

  test.each(shapes)("by %s is refused or decided by, at every depth, and Cedar stays up", (_what, shape) => {
    const own = openCedar();
    const ask = {
      principal: { type: "Org", id: "o" },
      action: { type: "Action", id: "invoke" },
      resource: { type: "Tool", id: "t" },
      context: { tokens: 1 },
      entities: [],
    };
    let refused = 0;
    for (let n = 1; n <= 2_000 && refused < 3; n = Math.ceil(n * 1.15)) {
      const text = policyOf(shape(n));
      if (nestingOf(text) > maxNesting) {
        refused++;
        expect(checkPolicy(own, policies.vocabulary, text).faults?.[0]?.message).toMatch(/nested too deeply/);
      } else {
        // None of these falls: it would throw.
        const json = own.ask((wasm) => wasm.policyToJson(text));
        if (json.type === "success") own.decide({ key: `k${n}`, policies: { p: text }, bytes: text.length }, ask);
        checkPolicy(own, policies.vocabulary, text);
      }
    }
    expect(refused).toBeGreaterThan(0);
  });

  test("in a list, a string or a comment is not nested", () => {
    expect(nestingOf(policyOf(`[${"[1],".repeat(2_000)}].isEmpty()`))).toBeLessThan(20);
    expect(nestingOf(policyOf(`"${"(".repeat(2_000)}\\"((" == "" // ${"(".repeat(2_000)}\n`))).toBeLessThan(10);
    expect(nestingOf(`permit (principal, action, resource)${")".repeat(500)};`)).toBeLessThan(20);
  });

  test("that makes Cedar fall all the same costs the question, and not the next one", () => {
    const own = openCedar();
    const deep = policyOf(`${"(".repeat(1_000)}true${")".repeat(1_000)}`);
    expect(() => own.ask((wasm) => wasm.policyToJson(deep))).toThrow(CedarFell);
    expect(own.ask((wasm) => wasm.policyToJson(policyOf("true"))).type).toBe("success");
  });
});

test("a bounded cache forgets the least recently used, by number and by weight, and tells what", () => {
  const dropped: string[] = [];
  const cache = bounded<number>(3, 10, (key) => dropped.push(key));
  for (const [key, weight] of [
    ["a", 1],
    ["b", 1],
    ["c", 1],
  ] as const)
    cache.set(key, 1, weight);
  expect(cache.get("a")).toBe(1);
  cache.set("d", 1, 1);
  expect(dropped).toEqual(["b"]);
  cache.set("e", 1, 9);
  expect(dropped).toEqual(["b", "c", "a"]);
  cache.set("f", 1, 50);
  expect([cache.size(), cache.weight(), cache.get("f")]).toEqual([1, 50, 1]);
});
