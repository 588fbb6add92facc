/** `moltwire vault`: encryption at rest. */
import { randomBytes } from "node:crypto";
import { MaintenanceService } from "../../gen/moltwire/ops/v1/maintenance_service_pb.ts";
import { type SealedTable, SealedTableState, type VaultStatus } from "../../gen/moltwire/ops/v1/vault_pb.ts";
import { addCall } from "./call.ts";
import { addNoun, asJson, type Noun, run } from "./command.ts";
import { exitCodes } from "./exit-codes.ts";
import { columns, note, paint, plain, print, printJson } from "./output.ts";
import type { ConnectionOptions } from "./settings.ts";
import { at, type Column, renderFacts, renderTable } from "./table.ts";

const { getVaultStatus, rotateVault, dropOrganizationKeys } = MaintenanceService.method;

/** Adds the commands. */
export const vault: Noun = (program) => {
  const noun = addNoun(program, "vault", "encryption at rest: its keys, and how far old data is");
  noun
    .command("generate-key")
    .description("make a master key, here; standard output gets it and nothing else")
    .addOption(asJson())
    .addHelpText("after", "\nExample:\n  umask 077; moltwire vault generate-key > master.key")
    .action(run(generateKey));
  addCall(noun, {
    name: "status",
    summary: "whether data is encrypted, under which keys, and how far old rows are; for the operator",
    method: getVaultStatus,
    fields: [],
    show: ({ status }) => describe(status!),
  });
  addCall(noun, {
    name: "rotate",
    summary: "new data keys for all, wrapped by the current master key; goes on in the background",
    example: "moltwire vault rotate --reencrypt",
    method: rotateVault,
    fields: [{ name: "reencrypt", as: "--reencrypt", help: "encrypt what is there already with the new keys too" }],
    show: ({ masterKeyId }) => [`rotating under ${plain(masterKeyId)}; \`moltwire vault status\` tells how far it is`],
  });
  addCall(noun, {
    name: "drop",
    summary: "destroy the keys of a disabled organisation: what it has stored can never be read again",
    example: "moltwire org update org_… --disable && moltwire vault drop org_…",
    method: dropOrganizationKeys,
    fields: [{ name: "targetOrgId", as: "<organisation>", help: "its id" }],
    show: ({ keysDropped }) => [`dropped; keys it had: ${keysDropped}`],
  });
};

async function generateKey(options: ConnectionOptions): Promise<number> {
  const masterKey = randomBytes(32).toString("base64");
  if (options.json) printJson({ masterKey });
  else {
    note("Keep it apart from the data and its backups: without it nobody can read them.");
    note("Give it to the server as MOLTWIRE_MASTER_KEY, or the file that holds it as MOLTWIRE_MASTER_KEY_FILE.");
    print(masterKey);
  }
  return exitCodes.ok;
}

const stateNames: Record<SealedTableState, string> = {
  [SealedTableState.UNSPECIFIED]: "",
  [SealedTableState.SEALING]: "encrypting",
  [SealedTableState.VERIFYING]: "looking once more",
  [SealedTableState.SEALED]: "encrypted",
};

const tableColumns: readonly Column<SealedTable>[] = [
  { title: "TABLE", cell: ({ table }) => table },
  {
    title: "STATE",
    cell: ({ state }) => stateNames[state] ?? "",
    colour: ({ state }) => (state === SealedTableState.SEALED ? "green" : "yellow"),
  },
  { title: "DONE", cell: ({ rowsSealed }) => (rowsSealed > 0n ? String(rowsSealed) : ""), right: true },
  {
    title: "LEFT",
    cell: ({ rowsLeft }) => (rowsLeft === 0n ? "" : rowsLeft >= 100_000n ? "100000 or more" : String(rowsLeft)),
    right: true,
  },
  { title: "PLAIN ROWS", cell: ({ enforced }) => (enforced ? "refused" : "read") },
];

function describe(status: VaultStatus): string[] {
  if (!status.encrypts) return [`${paint("yellow", "not encrypted")}  start the server with MOLTWIRE_MASTER_KEY`];
  const { dataKeys } = status;
  const isOther = status.givenMasterKeyId !== status.masterKeyId;
  return [
    ...renderFacts(status.complete ? paint("green", "encrypted") : paint("yellow", "encrypted; work is left"), [
      ["master key", status.masterKeyId],
      ["given", isOther ? `${status.givenMasterKeyId}, in force after \`moltwire vault rotate\`` : ""],
      ["since", at(status.createTime)],
      ["rotated", at(status.rotateTime)],
      [
        "data keys",
        `${dataKeys?.active} active, ${dataKeys?.retired} retired, ${dataKeys?.dropped} dropped; ${dataKeys?.toRewrap} to wrap, ${dataKeys?.toReplace} to replace`,
      ],
    ]),
    "",
    ...renderTable(tableColumns, status.tables, columns()),
  ];
}
