/** What a new database needs before the first request: the server's secret, the operator's organisation and key, something to try. */

import { Role } from "../gen/moltwire/api/v1/access_pb.ts";
import { TrustTier } from "../gen/moltwire/bus/v1/agent_pb.ts";
import { insertAgent } from "./bus/agent-store.ts";
import { insertContract } from "./bus/contract-store.ts";
import { schemaDigest } from "./bus/schema/schema.ts";
import type { Clock } from "./clock.ts";
import { type Db, sql, type Tx } from "./db/db.ts";
import { issueKey } from "./federation/issue-key.ts";
import { insertOrganization } from "./federation/organization-store.ts";
import type { Ids } from "./ids.ts";

/** What the server knows after the start; `operatorKey` only when one was made at this start, and then never again. */
export type Setup = {
  readonly cursorSecret: Uint8Array;
  readonly homeOrgId: string;
  readonly operatorKey: string | undefined;
};

type Needs = { readonly db: Db; readonly ids: Ids; readonly clock: Clock; readonly operatorKeyGiven: boolean };

const secretName = "cursor_secret";
const homeName = "home_org_id";

/** One transaction: of any number of replicas that start at once, one sets up and the others find it done. */
export const setUp = ({ db, ids, clock, operatorKeyGiven }: Needs): Promise<Setup> =>
  db.tx(async (tx) => {
    const secret = Buffer.from(ids.bytes(32));
    const first = await tx.run(
      sql`insert into setting (name, value) values (${secretName}, ${secret}) on conflict do nothing`,
    );
    if (first === 0) {
      const homeOrgId = Buffer.from(await setting(tx, homeName)).toString();
      const now = clock.now();
      const lockedOut = !operatorKeyGiven && !(await hasOperatorKey(tx, now));
      const operatorKey = lockedOut ? await addOperatorKey(tx, ids, homeOrgId, now) : undefined;
      return { cursorSecret: await setting(tx, secretName), homeOrgId, operatorKey };
    }
    const now = clock.now();
    const homeOrgId = ids.next("org");
    await tx.run(sql`insert into setting (name, value) values (${homeName}, ${Buffer.from(homeOrgId)})`);
    await insertOrganization(tx, {
      org_id: homeOrgId,
      name: "home",
      display_name: "Home",
      metadata: "{}",
      disabled: 0,
      create_ms: now,
      update_ms: now,
      revision: 1,
      auto_accept_grants: 0,
    });
    await addEcho(tx, ids, homeOrgId, now);
    return {
      cursorSecret: secret,
      homeOrgId,
      operatorKey: operatorKeyGiven ? undefined : await addOperatorKey(tx, ids, homeOrgId, now),
    };
  });

async function setting(tx: Tx, name: string): Promise<Uint8Array> {
  const row = await tx.one<{ value: Uint8Array }>(sql`select value from setting where name = ${name}`);
  if (!row) throw new Error(`the database lacks its setting ${name}: it was not set up by this program`);
  return row.value;
}

/** Without one nobody could ever administer the server again, such as when the one of the first start was given and this start has none. */
const hasOperatorKey = async (tx: Tx, now: number): Promise<boolean> =>
  (await tx.one(sql`
    select 1 as found from api_key where role = ${Role.OPERATOR} and revoke_ms is null and (expire_ms is null or expire_ms > ${now}) limit 1`)) !==
  undefined;

async function addOperatorKey(tx: Tx, ids: Ids, orgId: string, now: number): Promise<string> {
  const { text } = await issueKey(tx, ids, {
    orgId,
    name: "operator key made at a start",
    role: Role.OPERATOR,
    agentId: "",
    scopes: [],
    createMs: now,
    expireMs: null,
    rotatedFrom: null,
  });
  return text;
}

/** An agent and a contract that answer with the input, so that the first command a newcomer copies has an answer. */
async function addEcho(tx: Tx, ids: Ids, orgId: string, now: number): Promise<void> {
  const schema = "{}";
  const sha256 = schemaDigest({});
  await insertAgent(tx, {
    org_id: orgId,
    agent_id: ids.next("agt"),
    name: "echo",
    description: "Answers every task with its input, for trying things out.",
    trust_tier: TrustTier.INTERNAL_TRUSTED,
    capabilities: JSON.stringify(["echo"]),
    allowed_tools: "[]",
    endpoint: JSON.stringify({ echo: {} }),
    metadata: "{}",
    disabled: 0,
    create_ms: now,
    update_ms: now,
    revision: 1,
    weight: 1,
    breaker: "",
    namespace: "",
  });
  await insertContract(tx, {
    org_id: orgId,
    contract_id: "echo",
    version: "1.0.0",
    capability: "echo",
    description: "Answers with the input, for trying things out.",
    input_schema: schema,
    output_schema: schema,
    input_schema_sha256: sha256,
    output_schema_sha256: sha256,
    security_class: TrustTier.PUBLIC_VENDOR,
    required_tools: "[]",
    timeout_ms: 10_000,
    repeatable: 1,
    max_retries: 0,
    backoff_ms: 200,
    max_backoff_ms: 30_000,
    approval_required: 0,
    fallbacks: "[]",
    create_ms: now,
    deprecate_ms: null,
    estimated_tokens: 0,
    max_tokens: 0,
    partner_agent_ids: "[]",
    peer_id: "",
    namespace: "",
  });
}
