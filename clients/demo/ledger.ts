/** The proof of the books of all organisations, which the demo ends with. */
import type { LedgerProof } from "../../gen/moltwire/ops/v1/ledger_pb.ts";
import { MaintenanceService } from "../../gen/moltwire/ops/v1/maintenance_service_pb.ts";
import type { Clients } from "../cli/connect.ts";
import { creditsText } from "../cli/credits.ts";

const maxProofMs = 10_000;

/**
 * Has the server add up every transfer anew. `operator` calls with the operator's key.
 *
 * @throws Error if the books are wrong.
 */
export async function proveLedger(operator: Clients): Promise<LedgerProof> {
  let proof: LedgerProof | undefined;
  for await (const { event } of operator(MaintenanceService).verifyLedger({}, { timeoutMs: maxProofMs }))
    if (event.case === "proof") proof = event.value;
  if (!proof) throw new Error("the stream ended without a proof");
  const [fault] = proof.faults;
  if (!proof.ok || proof.sumMicros !== 0n)
    throw new Error(`the books are wrong in ${proof.faultCount} places${fault ? `, first ${fault.description}` : ""}`);
  return proof;
}

/** What was found, in a line. */
export const ledgerText = ({ sumMicros, accounts, transfers, issuedMicros }: LedgerProof): string =>
  `Σ = ${creditsText(sumMicros)} over ${accounts} accounts and ${transfers} transfers, ${creditsText(issuedMicros)} credits issued`;
