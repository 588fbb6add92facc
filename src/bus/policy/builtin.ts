import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Cedar } from "./cedar.ts";
import { type PolicySet, policySet } from "./policy-set.ts";
import { factsOf } from "./statement.ts";

const idOf = /^@id\("(builtin\/[a-z-]+)"\)\n/m;

/** The policies of `builtin.cedar`: blocks between empty lines, each a comment and a statement that begins with its id. */
export function readBuiltins(cedar: Cedar): PolicySet {
  const file = readFileSync(join(import.meta.dirname, "builtin.cedar"), "utf8");
  const statements = file.split(/\n{2,}/).flatMap((block) => {
    const found = idOf.exec(block);
    if (!found) return [];
    const text = block.slice(found.index).trim();
    const description = block
      .slice(0, found.index)
      .replaceAll(/^\/\/ ?/gm, "")
      .trim()
      .replaceAll("\n", " ");
    return [{ policyId: found[1]!, revision: 0, text, description, facts: factsOf(cedar, text) }];
  });
  return policySet(
    0,
    statements.toSorted((a, b) => (a.policyId < b.policyId ? -1 : 1)),
  );
}
