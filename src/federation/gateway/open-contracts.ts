/** What the grants of other organisations open, page by page: grant after grant, newest first, and of each its contracts. */
import type { JsonObject, MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { GatewayContractSchema } from "../../../gen/moltwire/federation/v1/gateway_pb.ts";
import { GrantParty, GrantState } from "../../../gen/moltwire/federation/v1/grant_pb.ts";
import { type ContractRow, usableContracts } from "../../bus/contract-store.ts";
import { costMicros, unknownUsage } from "../../bus/cost/price.ts";
import { reserveTokens } from "../../bus/cost/price-attempt.ts";
import { rateFor } from "../../bus/cost/rate-store.ts";
import type { Queryable } from "../../db/db.ts";
import type { Position } from "../../rpc/cursor.ts";
import { listGrants } from "../grant/list-store.ts";
import { asOf, findGrant, type GrantRow } from "../grant/store.ts";
import { findOrganization } from "../organization-store.ts";

/** Empty: any. */
export type OpenFilter = { readonly grantId: string; readonly targetOrgId: string; readonly capability: string };

export type OpenContract = { readonly grant: GrantRow; readonly contract: ContractRow };

/** A page and, if there may be more, where it goes on: [grant] after all of that grant, or [grant, contract, create time, version]. */
export type OpenPage = { readonly rows: readonly OpenContract[]; readonly next: Position | undefined };

/** How many grants one page looks through: there may be many that open nothing. */
const maxGrants = 250;

export async function openContracts(
  db: Queryable,
  orgId: string,
  filter: OpenFilter,
  after: Position | undefined,
  size: number,
  now: number,
): Promise<OpenPage> {
  const rows: OpenContract[] = [];
  const [begun, ...within] = after ?? [];
  const first = begun === undefined || within.length === 0 ? undefined : await inForce(db, orgId, String(begun), now);
  if (first) await add(db, rows, first, filter, within, size);
  if (rows.length > size) return cut(rows, size);
  const rest = filter.grantId
    ? [after ? undefined : await inForce(db, orgId, filter.grantId, now)].filter((row) => row !== undefined)
    : await grantsAfter(db, orgId, filter, begun, now);
  for (const grant of rest) {
    if (filter.targetOrgId && grant.org_id !== filter.targetOrgId) continue;
    await add(db, rows, grant, filter, undefined, size);
    if (rows.length > size) return cut(rows, size);
  }
  const last = rest.at(-1);
  return { rows, next: last && rest.length === maxGrants ? [last.grant_id] : undefined };
}

const grantsAfter = (
  db: Queryable,
  orgId: string,
  { targetOrgId }: OpenFilter,
  begun: Position[number] | undefined,
  now: number,
): Promise<GrantRow[]> => {
  const ofThese = { state: GrantState.ACTIVE, party: GrantParty.GRANTEE, counterpartyOrgId: targetOrgId };
  return listGrants(db, orgId, ofThese, now, begun === undefined ? undefined : [begun], maxGrants);
};

async function inForce(db: Queryable, orgId: string, grantId: string, now: number): Promise<GrantRow | undefined> {
  const row = await findGrant(db, orgId, grantId);
  const is = row !== undefined && row.grantee_org_id === orgId && asOf(row, now).state === GrantState.ACTIVE;
  return is ? row : undefined;
}

/** One more than fits, which tells that there is more. */
async function add(
  db: Queryable,
  rows: OpenContract[],
  grant: GrantRow,
  { capability }: OpenFilter,
  after: Position | undefined,
  size: number,
): Promise<void> {
  const { subject_kind: kind, subject } = grant;
  // What it is on is found in the catalog, and is not to be had without its price.
  if (kind === "listingId") return;
  const of = { kind, subject };
  // Of an organisation that is disabled nothing is open, as SubmitTask has it.
  if ((await findOrganization(db, grant.org_id))?.disabled !== 0) return;
  const found = await usableContracts(db, grant.org_id, of, capability, after, size + 1 - rows.length);
  rows.push(...found.map((contract) => ({ grant, contract })));
}

function cut(rows: readonly OpenContract[], size: number): OpenPage {
  const page = rows.slice(0, size);
  const { grant, contract } = page.at(-1)!;
  return { rows: page, next: [grant.grant_id, contract.contract_id, contract.create_ms, contract.version] };
}

/** What of them is shown: the names and prices of each organisation are read once. */
export async function toGatewayContracts(
  db: Queryable,
  rows: readonly OpenContract[],
  now: number,
): Promise<MessageInitShape<typeof GatewayContractSchema>[]> {
  const orgIds = [...new Set(rows.map(({ grant }) => grant.org_id))];
  const of = new Map<string, { readonly name: string; readonly rate: Awaited<ReturnType<typeof rateFor>> }>();
  for (const orgId of orgIds) {
    const organization = await findOrganization(db, orgId);
    of.set(orgId, { name: organization?.name ?? "", rate: await rateFor(db, orgId, "", "", now) });
  }
  return rows.map(({ grant, contract }) => {
    const { name, rate } = of.get(grant.org_id)!;
    const tokens = reserveTokens(contract);
    return {
      orgId: grant.org_id,
      orgName: name,
      contractId: contract.contract_id,
      version: contract.version,
      capability: contract.capability,
      description: contract.description,
      inputSchema: JSON.parse(contract.input_schema) as JsonObject,
      outputSchema: JSON.parse(contract.output_schema) as JsonObject,
      namespace: contract.namespace,
      estimatedTokens: BigInt(tokens),
      estimatedCostMicros: BigInt(costMicros(unknownUsage(tokens, "", rate), rate)),
      grantId: grant.grant_id,
      createTime: timestampFromMs(contract.create_ms),
    };
  });
}
