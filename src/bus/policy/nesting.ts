/** The deepest a policy may nest, in the units of {@link nestingOf}; Cedar's stack holds about twice as much. */
export const maxNesting = 160;

const bracket = 4;
const step = 1;

/** One bracket that is open: the steps since its last comma, and the `&&` and `||`. */
type Level = { steps: number; links: number };

const token = /\/\/[^\n]*|"(?:[^"\\]|\\[\s\S])*"?|[A-Za-z_]\w*|&&|\|\||[\s\S]/g;

/**
 * How deep the syntax tree of a policy can be, at most and roughly, told without parsing it: Cedar parses, prints and evaluates recursively, and a text
 * that is nested too deeply (a hundred and fifty brackets do) takes the whole evaluator down. A bracket counts 4; what makes a chain longer (a
 * member, a sum, a negation, an `if`, an `&&`, an `||`, a `when`) 1. Brackets within brackets add up, the elements of a list do not.
 */
export function nestingOf(text: string): number {
  const levels: Level[] = [{ steps: 0, links: 0 }];
  // The sum over all open levels, kept as it goes.
  let depth = 0;
  let deepest = 0;
  const add = (what: keyof Level, amount: number): void => {
    levels.at(-1)![what] += amount;
    depth += amount;
    deepest = Math.max(deepest, depth);
  };
  const forget = (level: Level, all: boolean): void => {
    depth -= level.steps + (all ? level.links : 0);
    level.steps = 0;
    if (all) level.links = 0;
  };
  for (const [word] of text.matchAll(token)) {
    switch (word) {
      case "(":
      case "[":
      case "{":
        add("steps", step);
        levels.push({ steps: bracket - step, links: 0 });
        depth += bracket - step;
        deepest = Math.max(deepest, depth);
        break;
      case ")":
      case "]":
      case "}":
        if (levels.length > 1) forget(levels.pop()!, true);
        break;
      case ",":
      case ";":
        forget(levels.at(-1)!, true);
        break;
      case "&&":
      case "||":
        forget(levels.at(-1)!, false);
        add("links", step);
        break;
      case "when":
      case "unless":
        add("links", step);
        break;
      case "if":
      case "+":
      case "-":
      case "*":
      case ".":
      case "!":
        add("steps", step);
    }
  }
  return deepest;
}
