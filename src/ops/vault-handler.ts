import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import type { MaintenanceService } from "../../gen/moltwire/ops/v1/maintenance_service_pb.ts";
import {
  type SealedTableSchema,
  SealedTableState,
  type VaultStatusSchema,
} from "../../gen/moltwire/ops/v1/vault_pb.ts";
import type { App } from "../app.ts";
import type { Queryable } from "../db/db.ts";
import { Fault, notFound } from "../errors.ts";
import { lockOrganization } from "../federation/organization-store.ts";
import { command } from "../rpc/command.ts";
import { query } from "../rpc/query.ts";
import { beginGeneration, countKeys, dropKeys, findVault, nextEpoch, type VaultRow } from "../vault/key-store.ts";
import { newCheck } from "../vault/open.ts";
import { positionOf } from "../vault/walk.ts";
import { countRows, listWalks, type SealedTable, type WalkRow } from "../vault/walk-store.ts";

type Methods = "getVaultStatus" | "rotateVault" | "dropOrganizationKeys";

/** The vault's part of MaintenanceService. `tables` are all that have encrypted columns. */
export const vaultHandler = (
  app: App,
  tables: readonly SealedTable[],
): Pick<ServiceImpl<typeof MaintenanceService>, Methods> => ({
  getVaultStatus: query(app, async (_req, { db }) => {
    const vault = await findVault(db);
    return { status: vault ? await statusOf(app, db, vault, tables) : { encrypts: false } };
  }),

  rotateVault: command(app, async (req, { tx, now }) => {
    const [master] = mastersOf(app);
    await nextEpoch(tx);
    await beginGeneration(tx, master!.id, newCheck(master!), req.reencrypt, now);
    return { masterKeyId: master!.id };
  }),

  dropOrganizationKeys: command(app, async (req, { tx }) => {
    mastersOf(app);
    const organization = await lockOrganization(tx, req.targetOrgId);
    if (!organization) throw notFound("organization", req.targetOrgId);
    if (organization.disabled === 0)
      throw new Fault("FAILED_PRECONDITION", "the organisation is not disabled: disable it first", {
        field: "target_org_id",
        state: "ENABLED",
      });
    return { keysDropped: await dropKeys(tx, req.targetOrgId, await nextEpoch(tx)) };
  }),
});

function mastersOf({ keyring }: App) {
  if (!keyring)
    throw new Fault("FAILED_PRECONDITION", "this server does not encrypt: start it with MOLTWIRE_MASTER_KEY", {
      state: "NOT_ENCRYPTED",
    });
  return keyring.masters;
}

const mostCounted = 100_000;

async function statusOf(
  app: App,
  db: Queryable,
  vault: VaultRow,
  tables: readonly SealedTable[],
): Promise<MessageInitShape<typeof VaultStatusSchema>> {
  const counts = await countKeys(db, vault);
  const walks = new Map((await listWalks(db)).map((walk) => [walk.table_name, walk]));
  const states: MessageInitShape<typeof SealedTableSchema>[] = [];
  for (const table of tables) states.push(await tableStatus(db, vault, table, walks.get(table.table)));
  const sealed = states.every(({ state }) => state === SealedTableState.SEALED);
  return {
    encrypts: true,
    masterKeyId: vault.master_id,
    givenMasterKeyId: app.keyring?.masters[0]?.id ?? "",
    createTime: timestampFromMs(vault.create_ms),
    rotateTime: timestampFromMs(vault.rotate_ms),
    dataKeys: {
      active: BigInt(counts.active),
      retired: BigInt(counts.retired),
      dropped: BigInt(counts.dropped),
      toRewrap: BigInt(counts.to_rewrap),
      toReplace: BigInt(counts.to_replace),
    },
    tables: states,
    complete: sealed && counts.to_rewrap === 0 && counts.to_replace === 0,
  };
}

async function tableStatus(
  db: Queryable,
  vault: VaultRow,
  table: SealedTable,
  walk: WalkRow | undefined,
): Promise<MessageInitShape<typeof SealedTableSchema>> {
  const current = walk?.generation === vault.reseal_generation ? walk : undefined;
  const lookedAt = current && current.passes > 0;
  const state =
    current && current.done_ms !== null
      ? SealedTableState.SEALED
      : lookedAt
        ? SealedTableState.VERIFYING
        : SealedTableState.SEALING;
  const rowsLeft = lookedAt ? 0 : await countRows(db, table, current && positionOf(current), mostCounted);
  return {
    table: table.table,
    state,
    rowsSealed: BigInt(current?.sealed ?? 0),
    rowsLeft: state === SealedTableState.SEALED ? 0n : BigInt(rowsLeft),
    enforced: walk !== undefined && walk.strict_ms !== null,
  };
}
