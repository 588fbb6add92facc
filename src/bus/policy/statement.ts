import type { Cedar, Expr, PolicyJson, TypeAndId } from "./cedar.ts";

/**
 * What can be told of a policy without evaluating it, kept beside its text so that a policy set is loaded without parsing. `null` = any. Wherever the reading
 * of {@link factsOf} changes, `v` does, and older facts are read again.
 */
export type Facts = {
  readonly v: 1;
  readonly effect: "permit" | "forbid";
  /** What its `@approval` says, if it is a permit that asks for an approval. */
  readonly approval: string | null;
  readonly actions: readonly string[] | null;
  /** The only principal and the only resource it can match, as {@link uidText}. */
  readonly principal: string | null;
  readonly resource: string | null;
  /** The circumstances it looks at. */
  readonly context: readonly string[] | null;
};

/** A policy that has a say. */
export type Statement = {
  readonly policyId: string;
  readonly revision: number;
  readonly text: string;
  readonly description: string;
  readonly facts: Facts;
};

export const factsVersion = 1;

/** What an `@approval` without a text says. */
const bareApproval = "somebody has to approve it";

export const uidText = ({ type, id }: { readonly type: string; readonly id: string }): string =>
  `${type}::${JSON.stringify(id)}`;

/** Reads the facts of a text that is known to be one statement. */
export function factsOf(cedar: Cedar, text: string): Facts {
  const answer = cedar.ask((wasm) => wasm.policyToJson(text));
  if (answer.type === "failure") throw new Error(`not a policy: ${answer.errors[0]?.message}`);
  return factsOfJson(answer.json);
}

export function factsOfJson(policy: PolicyJson): Facts {
  const { effect, principal, action, resource, conditions, annotations = {} } = policy;
  const approval =
    Object.hasOwn(annotations, "approval") && effect === "permit" ? annotations.approval || bareApproval : null;
  const context = new Set<string>();
  const open = conditions.map(({ body }) => mentions(body, context)).includes(false);
  return {
    v: factsVersion,
    effect,
    approval,
    actions: actionsOf(action),
    principal: only(principal),
    resource: only(resource),
    context: open ? null : [...context].toSorted(),
  };
}

function actionsOf(action: PolicyJson["action"]): string[] | null {
  if (action.op === "All") return null;
  if ("entities" in action) return action.entities.map((one) => plain(one).id);
  return "entity" in action ? [plain(action.entity).id] : null;
}

const only = (head: PolicyJson["principal"] | PolicyJson["resource"]): string | null =>
  head.op === "==" && "entity" in head ? uidText(plain(head.entity)) : null;

const plain = (uid: { __entity: TypeAndId } | TypeAndId): TypeAndId => ("__entity" in uid ? uid.__entity : uid);

/** Collects which attributes of the context an expression reads; false when it takes the context as a whole. */
function mentions(expr: Expr | unknown, into: Set<string>): boolean {
  if (typeof expr !== "object" || expr === null) return true;
  for (const [op, inner] of Object.entries(expr)) {
    if (op === "Value") continue;
    if (op === "Var") {
      if (inner === "context") return false;
      continue;
    }
    const { left, attr } = (inner ?? {}) as { left?: unknown; attr?: string | string[] };
    if ((op === "." || op === "has") && isContext(left)) {
      into.add(Array.isArray(attr) ? attr[0]! : attr!);
      continue;
    }
    if (!mentions(inner, into)) return false;
  }
  return true;
}

const isContext = (expr: unknown): boolean =>
  typeof expr === "object" && expr !== null && "Var" in expr && expr.Var === "context";
