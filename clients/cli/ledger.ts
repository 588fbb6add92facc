/** `moltwire ledger`: whether the books are right. */
import { toJson } from "@bufbuild/protobuf";
import { type LedgerProof, LedgerProofSchema } from "../../gen/moltwire/ops/v1/ledger_pb.ts";
import { MaintenanceService } from "../../gen/moltwire/ops/v1/maintenance_service_pb.ts";
import { addNoun, type Noun, run, withServer } from "./command.ts";
import { connectClients } from "./connect.ts";
import { creditsText } from "./credits.ts";
import { exitCodes } from "./exit-codes.ts";
import { note, paint, plain, print, printJson } from "./output.ts";
import { type ConnectionOptions, readSettings } from "./settings.ts";
import { renderFacts } from "./table.ts";

/** Adds the command. */
export const ledger: Noun = (program) => {
  const noun = addNoun(program, "ledger", "the books of all organisations");
  const command = noun
    .command("verify")
    .description("add up every transfer anew, as of one instant, and tell what cannot be; for the operator");
  withServer(command, MaintenanceService.method.verifyLedger).action(run(verify));
};

async function verify(options: ConnectionOptions): Promise<number> {
  const settings = readSettings(options, process.env);
  const tells = options.json !== true && process.stderr.isTTY === true;
  let proof: LedgerProof | undefined;
  for await (const { event } of connectClients(settings)(MaintenanceService).verifyLedger({})) {
    if (event.case === "progress" && tells) note(`${event.value.rows} rows`);
    if (event.case === "proof") proof = event.value;
  }
  if (!proof) throw new Error("the stream ended without a proof");
  if (options.json) printJson(toJson(LedgerProofSchema, proof));
  else for (const line of describe(proof)) print(line);
  return proof.ok ? exitCodes.ok : exitCodes.failed;
}

function describe(proof: LedgerProof): string[] {
  const faults = proof.faults.map(({ orgId, subjectId, description }) =>
    plain([orgId, subjectId, description].filter((text) => text !== "").join("  ")),
  );
  const more = proof.faultCount - BigInt(faults.length);
  const headline = proof.ok
    ? `${paint("green", "✔")} the books balance`
    : `${paint("red", "✘")} the books are wrong in ${proof.faultCount} places`;
  return renderFacts(headline, [
    ["sum", `${creditsText(proof.sumMicros)} of ${proof.accounts} accounts and ${proof.transfers} transfers`],
    ["issued", `${creditsText(proof.issuedMicros)} credits`],
    ["reserved", `${creditsText(proof.reservedMicros)} credits in ${proof.liveReserves} live reserves`],
    ["wrong", more > 0n ? [...faults, `and ${more} more`] : faults],
  ]);
}
