/**
 * Whose turn it is among the agents of a contract, so that its tasks go round. Counted for each contract, or two that are submitted by turns
 * would each have one agent; and in memory, since this is fairness and no promise.
 */
export type Turns = {
  /** The turn of the next task, which is thereby taken. */
  take(orgId: string, contractId: string): number;
  /** What `take` would give. */
  peek(orgId: string, contractId: string): number;
};

const maxKept = 10_000;

export function createTurns(): Turns {
  const turns = new Map<string, number>();
  const keyOf = (orgId: string, contractId: string) => `${orgId} ${contractId}`;
  const peek = (orgId: string, contractId: string): number => turns.get(keyOf(orgId, contractId)) ?? 0;
  return {
    peek,
    take(orgId, contractId) {
      const turn = peek(orgId, contractId);
      const key = keyOf(orgId, contractId);
      turns.delete(key); // last in the order of insertion = used last
      turns.set(key, turn + 1);
      if (turns.size > maxKept) turns.delete(turns.keys().next().value!);
      return turn;
    },
  };
}
