/** `moltwire audit`: who did what, and the proof that the log of it is whole. */
import { RoleSchema } from "../../gen/moltwire/api/v1/access_pb.ts";
import {
  AdminService,
  type AuditEvent,
  AuditKind,
  type GetAuditHeadResponse,
} from "../../gen/moltwire/ops/v1/admin_service_pb.ts";
import { name } from "./audit-chain.ts";
import { exportAudit } from "./audit-export.ts";
import { mark, numberedMark, verify } from "./audit-verify.ts";
import { addCall } from "./call.ts";
import { addNoun, type Noun, run, withServer } from "./command.ts";
import { addList } from "./list.ts";
import { nameIn } from "./names.ts";
import { paint } from "./output.ts";
import { age, at, type Column, renderFacts } from "./table.ts";

const { listAuditEvents, getAuditHead } = AdminService.method;

/** Adds the commands. */
export const audit: Noun = (program) => {
  const noun = addNoun(program, "audit", "who changed what, in a log that cannot be changed unseen");
  addList(noun, {
    summary: "list administrative changes and decisions, newest first",
    method: listAuditEvents,
    rows: ({ auditEvents }) => auditEvents,
    columns,
    things: "audit rows",
    first: "moltwire org update --display-name NAME",
  });
  addCall(noun, {
    name: "head",
    summary: "tell where the chain ends: note it where nobody can change it who can change the database",
    method: getAuditHead,
    fields: [],
    show: describe,
  });
  withServer(
    noun
      .command("export")
      .description("write the chained rows of an organisation into a file, oldest first")
      .argument("<file>", "where to; it must not be there yet")
      .option("--after <number:hash>", "the head of the export before: only the rows after it", numberedMark)
      .option("--force", "write over a file that is there, once the new one is whole"),
    AdminService.method.exportAuditEvents,
  )
    .addHelpText("after", "\nExample:\n  moltwire audit export audit-2026.ndjson --org org_…")
    .action(run(exportAudit));
  noun
    .command("verify")
    .description(
      "check an export, without a server: no row was changed, removed, inserted or moved. Ends with 1 if one was",
    )
    .argument("<file>", "what `moltwire audit export` has made")
    .option(
      "--head <number:hash>",
      "a head that was noted: the export has to hold it, so that its end is not cut",
      mark,
    )
    .option("--after <number:hash>", "the head of the export before: this one has to go on there", mark)
    .option("--json", "print JSON, for programs")
    .addHelpText("after", "\nExample:\n  moltwire audit verify audit-2026.ndjson --head $(cat head-of-december)")
    .action(run(verify));
};

const what = ({ resource }: AuditEvent): string =>
  Object.keys(resource)
    .sort()
    .map((key) => `${key}=${resource[key]}`)
    .join(" ");

const columns: readonly Column<AuditEvent>[] = [
  { title: "ROW", cell: ({ number }) => (number > 0n ? String(number) : ""), right: true },
  { title: "AGE", cell: ({ time }) => age(time), right: true },
  { title: "KIND", cell: ({ kind }) => (kind === AuditKind.DECISION ? "decision" : "") },
  { title: "METHOD", cell: ({ method }) => method.replace(/^.*\./, "") },
  { title: "ROLE", cell: ({ role }) => nameIn(RoleSchema, role).toLowerCase() },
  { title: "KEY", cell: ({ keyId }) => keyId },
  { title: "WHAT", cell: what, cut: true },
];

function describe({ head, unsealed }: GetAuditHeadResponse): string[] {
  const { orgId, number, hash, sealTime } = head!;
  return renderFacts(paint("bold", name(Number(number), hash)), [
    ["organisation", orgId],
    ["chained", at(sealTime)],
    ["to chain", unsealed > 0 ? String(unsealed) : ""],
  ]);
}
