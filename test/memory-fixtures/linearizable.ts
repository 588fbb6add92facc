/**
 * Whether what clients saw of one key could have come from a register that does one thing at a time: the search of Wing and Gong with Lowe's memory of
 * what was tried (https://www.cs.ox.ac.uk/people/gavin.lowe/LinearizabiltyTesting/paper.pdf).
 */

/** What a client did to a key. Every value is written once at most, so that it says which write it is of. */
export type Step =
  | { readonly kind: "set"; readonly value: number }
  | { readonly kind: "cas"; readonly value: number; readonly expected: number }
  | { readonly kind: "delete" }
  | { readonly kind: "get" };

/** What came of it: the value that was there (0: none), or whether it took effect; undefined: nobody knows. */
export type Result = { readonly value: number } | { readonly done: boolean } | undefined;

export type Operation = {
  readonly step: Step;
  readonly result: Result;
  readonly start: number;
  /** Infinity when nobody knows whether it has happened, or will. */
  readonly end: number;
};

const maxStates = 500_000;

/** The state after an operation, or undefined when it could not have answered so in this state. */
function after(value: number, { step, result }: Operation): number | undefined {
  switch (step.kind) {
    case "get":
      return result === undefined || ("value" in result && result.value === value) ? value : undefined;
    case "set":
      return step.value;
    case "delete":
      return result && "done" in result && result.done !== (value !== 0) ? undefined : 0;
    case "cas": {
      const fits = step.expected === value;
      if (result && "done" in result && result.done !== fits) return undefined;
      return fits ? step.value : value;
    }
  }
}

/** Whether there is an order. Operations without a known outcome may happen at any time after their start, or never. */
export function isLinearizable(history: readonly Operation[]): boolean {
  const operations = history.toSorted((a, b) => a.start - b.start);
  const seen = new Set<string>();
  type Frame = { readonly done: bigint; readonly from: number; readonly value: number };
  const stack: Frame[] = [{ done: 0n, from: 0, value: 0 }];
  while (stack.length > 0) {
    const { done, from, value } = stack.pop()!;
    let first = from;
    while (first < operations.length && (done >> BigInt(first - from)) & 1n) first++;
    const rest = done >> BigInt(first - from);
    const key = `${first} ${rest} ${value}`;
    if (seen.has(key)) continue;
    seen.add(key);
    if (seen.size > maxStates) throw new Error("too many orders to look through: make the history shorter");
    const open: number[] = [];
    let earliestEnd = Number.POSITIVE_INFINITY;
    for (let n = first; n < operations.length && operations[n]!.start < earliestEnd; n++) {
      if ((rest >> BigInt(n - first)) & 1n) continue;
      open.push(n);
      earliestEnd = Math.min(earliestEnd, operations[n]!.end);
    }
    if (open.every((n) => operations[n]!.end === Number.POSITIVE_INFINITY) && earliestEnd === Number.POSITIVE_INFINITY)
      return true;
    for (const n of open) {
      const next = after(value, operations[n]!);
      if (next !== undefined) stack.push({ done: rest | (1n << BigInt(n - first)), from: first, value: next });
    }
  }
  return false;
}
