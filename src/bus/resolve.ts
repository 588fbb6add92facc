import type { Queryable } from "../db/db.ts";
import { badField, Fault } from "../errors.ts";
import { type ContractRef, type ContractRow, findContract, versionsOf } from "./contract-store.ts";
import { type AvailableVersion, resolveVersion } from "./version.ts";

const shownVersions = 10;

/**
 * The contract version that a reference means: an exact one, the newest in a range, or the latest. Throws CONTRACT_NOT_FOUND,
 * CONTRACT_VERSION_NOT_FOUND or INVALID_REQUEST, naming the field that is wrong.
 */
export async function resolveContract(
  db: Queryable,
  orgId: string,
  ref: ContractRef,
  field: Fields = { contract: "contract_id", version: "contract_version" },
): Promise<ContractRow> {
  const { contractId, version } = ref;
  const exact = version ? await findContract(db, orgId, contractId, version) : undefined;
  if (exact) return exact;
  const available = await versionsOf(db, orgId, contractId);
  const resolved = resolveVersion(version, available);
  if (resolved.kind === "invalid") throw badField(field.version, resolved.message);
  const row = resolved.kind === "found" ? await findContract(db, orgId, contractId, resolved.version) : undefined;
  if (row) return row;
  throw versionNotFound(ref, available, field);
}

type Fields = { readonly contract: string; readonly version: string };

/** CONTRACT_NOT_FOUND when there is no version at all, else CONTRACT_VERSION_NOT_FOUND with some that there are. */
export function versionNotFound(
  { contractId, version }: ContractRef,
  available: readonly AvailableVersion[],
  field: Fields,
): Fault {
  if (available.length === 0) {
    const message = `there is no contract ${contractId}: register it first, or check ListContracts`;
    return new Fault(
      "CONTRACT_NOT_FOUND",
      message,
      { field: field.contract, contract_id: contractId },
      { fields: [{ field: field.contract, description: message }] },
    );
  }
  const usable = available.filter(({ deprecated }) => !deprecated).map((one) => one.version);
  const shown = usable.slice(-shownVersions).join(", ") || "none that is not deprecated";
  const message = `${contractId} has no version ${version ? `that fits ${version}` : "that is not deprecated"}; there are: ${shown}`;
  const metadata = {
    field: field.version,
    contract_id: contractId,
    requested: version,
    available: usable.slice(-shownVersions).join(", "),
  };
  return new Fault("CONTRACT_VERSION_NOT_FOUND", message, metadata, {
    fields: [{ field: field.version, description: message }],
  });
}
