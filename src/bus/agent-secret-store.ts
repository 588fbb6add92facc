/** The keys that endpoints need, by value: sealed, apart from the agents, and read only to be sent. */
import type { App } from "../app.ts";
import { type Queryable, sql, type Tx } from "../db/db.ts";

/** Where a key lies. */
export const secretPlace = (orgId: string, agentId: string) => ({ orgId, table: "agent_secret", id: agentId });

/** A key, and the origin of the URL that it was given for: it goes nowhere else, whatever the endpoint says meanwhile. */
export type Secret = { readonly origin: string; readonly key: string };

/** Stores the key of an agent's endpoint, in the place of one before. */
export const putSecret = (
  tx: Tx,
  app: Pick<App, "vault">,
  orgId: string,
  agentId: string,
  { origin, key }: Secret,
): Promise<number> => {
  const sealed = app.vault.seal(secretPlace(orgId, agentId), Buffer.from(JSON.stringify({ origin, key })));
  return tx.run(sql`
    insert into agent_secret (org_id, agent_id, secret) values (${orgId}, ${agentId}, ${sealed})
    on conflict (org_id, agent_id) do update set secret = ${sealed}`);
};

export const deleteSecret = (tx: Tx, orgId: string, agentId: string): Promise<number> =>
  tx.run(sql`delete from agent_secret where org_id = ${orgId} and agent_id = ${agentId}`);

/** The key of an agent's endpoint, in the clear; undefined when there is none. */
export async function findSecret(
  db: Queryable,
  app: Pick<App, "vault">,
  orgId: string,
  agentId: string,
): Promise<Secret | undefined> {
  const row = await db.one<{ secret: Uint8Array }>(
    sql`select secret from agent_secret where org_id = ${orgId} and agent_id = ${agentId}`,
  );
  return row && (JSON.parse(Buffer.from(app.vault.open(secretPlace(orgId, agentId), row.secret)).toString()) as Secret);
}
