/** The one place that holds Cedar's evaluator, which is WebAssembly: what it is asked, and what happens when it falls. */
import { createRequire } from "node:module";
import type * as Wasm from "@cedar-policy/cedar-wasm/nodejs";
import { bounded } from "./bounded.ts";

export type {
  CedarValueJson,
  DetailedError,
  EntityJson,
  Expr,
  PolicyJson,
  TypeAndId,
} from "@cedar-policy/cedar-wasm/nodejs";

/** Policies that are compiled together: their texts by id, a key that changes with them, and their size in bytes. */
export type Chunk = {
  readonly key: string;
  readonly policies: Readonly<Record<string, string>>;
  readonly bytes: number;
};

/** One request as Cedar takes it. */
export type CedarRequest = Pick<
  Wasm.StatefulAuthorizationCall,
  "principal" | "action" | "resource" | "context" | "entities"
>;

/** What Cedar says: which policies made the decision, and which failed, with why. */
export type CedarOutcome = {
  readonly allowed: boolean;
  readonly reasons: readonly string[];
  readonly errors: readonly { readonly policyId: string; readonly message: string }[];
};

export type Cedar = {
  /** Asks anything of Cedar that leaves nothing behind. Throws {@link CedarFell} when it falls twice. */
  ask<T>(question: (wasm: typeof Wasm) => T): T;
  /** Decides by one chunk, which is compiled if it is not. */
  decide(chunk: Chunk, request: CedarRequest): CedarOutcome;
  readonly compiled: () => number;
};

/** Cedar ran out of stack or memory over something. It was started anew and holds nothing that was compiled. */
export class CedarFell extends Error {
  override readonly name = "CedarFell";
}

/** A policy that was kept once cannot be parsed any more. */
export class StoredPolicyError extends Error {
  override readonly name = "StoredPolicyError";
}

/** Compiled policies take about twenty times the memory of their text, so that these are at most 80 MiB. */
const maxCompiledBytes = 4 * 1_048_576;
const maxCompiledChunks = 2_048;

const require = createRequire(import.meta.url);
const load = (): typeof Wasm => {
  const path = require.resolve("@cedar-policy/cedar-wasm/nodejs");
  // The module is its own only instance: to have another, it is loaded again.
  delete require.cache[path];
  return require(path) as typeof Wasm;
};

export function openCedar(): Cedar {
  let wasm = load();
  // Cedar keeps what is compiled under a name for ever: names are used again, so that it keeps no more than the bound.
  const free: string[] = [];
  let names = 0;
  const compiled = bounded<string>(maxCompiledChunks, maxCompiledBytes, (_key, name) => {
    wasm.preparsePolicySet(name, {});
    free.push(name);
  });

  const restart = (): void => {
    wasm = load();
    compiled.clear();
    free.length = 0;
    names = 0;
  };
  /** Once more when it falls: it may have been for what was before. A fall leaves its memory in a state nobody knows. */
  const guarded = <T>(work: () => T, again = true): T => {
    try {
      return work();
    } catch (error) {
      if (error instanceof StoredPolicyError) throw error;
      restart();
      if (again) return guarded(work, false);
      throw new CedarFell("the policy evaluator ran out of stack or memory", { cause: error });
    }
  };

  const nameOf = (chunk: Chunk): string => {
    const known = compiled.get(chunk.key);
    if (known) return known;
    const name = free.pop() ?? `chunk ${names++}`;
    const answer = wasm.preparsePolicySet(name, { staticPolicies: { ...chunk.policies } });
    if (answer.type === "failure") {
      free.push(name);
      throw new StoredPolicyError(`a stored policy cannot be parsed: ${answer.errors[0]?.message}`);
    }
    compiled.set(chunk.key, name, chunk.bytes);
    return name;
  };

  return {
    ask: (question) => guarded(() => question(wasm)),
    decide(chunk, request) {
      const answer = guarded(() =>
        wasm.statefulIsAuthorized({ ...request, preparsedPolicySetId: nameOf(chunk), validateRequest: false }),
      );
      if (answer.type === "failure") throw new Error(`a policy question is malformed: ${answer.errors[0]?.message}`);
      const { decision, diagnostics } = answer.response;
      const errors = diagnostics.errors.map(({ policyId, error }) => ({ policyId, message: error.message }));
      return { allowed: decision === "allow", reasons: diagnostics.reason, errors };
    },
    compiled: compiled.size,
  };
}
