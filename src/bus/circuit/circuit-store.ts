import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { type CircuitSchema, CircuitState } from "../../../gen/moltwire/bus/v1/agent_pb.ts";
import { type Queryable, sql, type Tx } from "../../db/db.ts";
import { type Breaker, type Circuit, closedCircuit, failureCount } from "./circuit.ts";

/** A circuit as it is stored: `failures` is JSON, the probe empty, 0 and null unless it is half-open. */
export type CircuitRow = {
  readonly state: number;
  readonly failures: string;
  readonly open_ms: number | null;
  readonly retry_ms: number | null;
  readonly probe_task_id: string;
  readonly probe_attempt: number;
  readonly probe_until_ms: number | null;
};

const columns = sql`state, failures, open_ms, retry_ms, probe_task_id, probe_attempt, probe_until_ms`;

/** How the circuit of an agent stands. */
export const findCircuit = async (db: Queryable, orgId: string, agentId: string): Promise<Circuit> =>
  toCircuit(
    await db.one<CircuitRow>(
      sql`select ${columns} from agent_circuit where org_id = ${orgId} and agent_id = ${agentId}`,
    ),
  );

/** In order to change it. The row that is not there yet cannot be locked: who would add it holds the lock of the agent. */
export const lockCircuit = async (tx: Tx, orgId: string, agentId: string): Promise<Circuit> =>
  toCircuit(
    await tx.one<CircuitRow>(
      sql`select ${columns} from agent_circuit where org_id = ${orgId} and agent_id = ${agentId} ${tx.dialect.forUpdate}`,
    ),
  );

export async function putCircuit(tx: Tx, orgId: string, agentId: string, circuit: Circuit): Promise<void> {
  const { state, failuresMs, openMs, retryMs, probe } = circuit;
  await tx.run(sql`
    insert into agent_circuit (org_id, agent_id, ${columns})
    values (${orgId}, ${agentId}, ${state}, ${JSON.stringify(failuresMs)}, ${openMs}, ${retryMs}, ${probe?.taskId ?? ""}, ${probe?.attempt ?? 0},
      ${probe?.untilMs ?? null})
    on conflict (org_id, agent_id) do update set state = excluded.state, failures = excluded.failures, open_ms = excluded.open_ms,
      retry_ms = excluded.retry_ms, probe_task_id = excluded.probe_task_id, probe_attempt = excluded.probe_attempt, probe_until_ms = excluded.probe_until_ms`);
}

/** Closes it and forgets all failures. */
export const deleteCircuit = (tx: Tx, orgId: string, agentId: string): Promise<number> =>
  tx.run(sql`delete from agent_circuit where org_id = ${orgId} and agent_id = ${agentId}`);

/** How many agents of all organisations have no closed circuit, for the metrics; by the partial index on them. */
export async function countOpenCircuits(db: Queryable): Promise<{ readonly open: number; readonly halfOpen: number }> {
  const rows = await db.all<{ state: number; n: number }>(
    sql`select state, count(*) as n from agent_circuit where state > 1 group by state`,
  );
  const of = (state: CircuitState) => rows.find((row) => row.state === state)?.n ?? 0;
  return { open: of(CircuitState.OPEN), halfOpen: of(CircuitState.HALF_OPEN) };
}

export const toCircuit = (row: CircuitRow | undefined): Circuit =>
  row
    ? {
        state: row.state as CircuitState,
        failuresMs: JSON.parse(row.failures) as number[],
        openMs: row.open_ms,
        retryMs: row.retry_ms,
        probe:
          row.probe_until_ms === null
            ? null
            : { taskId: row.probe_task_id, attempt: row.probe_attempt, untilMs: row.probe_until_ms },
      }
    : closedCircuit;

/** A circuit as clients read it. */
export const toCircuitMessage = (
  circuit: Circuit,
  breaker: Breaker,
  now: number,
): MessageInitShape<typeof CircuitSchema> => ({
  state: circuit.state,
  failureCount: failureCount(circuit, breaker, now),
  ...(circuit.openMs !== null && { openTime: timestampFromMs(circuit.openMs) }),
  ...(circuit.retryMs !== null && { retryTime: timestampFromMs(circuit.retryMs) }),
});
