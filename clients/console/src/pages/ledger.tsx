import { createClient } from "@connectrpc/connect";
import { useTransport } from "@connectrpc/connect-query";
import { Button, Group, Stack, Text } from "@mantine/core";
import { useEffect, useRef, useState } from "react";
import { type LedgerFault, LedgerFaultSchema, type LedgerProof } from "../../../../gen/moltwire/ops/v1/ledger_pb.ts";
import { MaintenanceService } from "../../../../gen/moltwire/ops/v1/maintenance_service_pb.ts";
import { Command } from "../parts/command.tsx";
import { Failure } from "../parts/failure.tsx";
import { type Column, List } from "../parts/list.tsx";
import { Facts, Head, Mono, State } from "../parts/show.tsx";
import { countText, creditsText, shortId } from "../parts/text.ts";

const columns: readonly Column<LedgerFault>[] = [
  { name: "Organisation", show: ({ orgId }) => (orgId ? <Mono>{shortId(orgId)}</Mono> : "all") },
  { name: "Of", show: ({ subjectId }) => (subjectId ? <Mono>{shortId(subjectId)}</Mono> : "all") },
  { name: "What is wrong", show: ({ description }) => <div className="any">{description}</div> },
];

type Proving = {
  readonly isRunning: boolean;
  readonly rows: bigint;
  readonly proof?: LedgerProof;
  readonly error?: unknown;
};

/** Adds up the books of all organisations; for the operator. */
export function Ledger() {
  const transport = useTransport();
  const [proving, setProving] = useState<Proving>({ isRunning: false, rows: 0n });
  const over = useRef<AbortController>(undefined);
  useEffect(() => () => over.current?.abort(), []);
  const prove = async () => {
    const { signal } = (over.current = new AbortController());
    setProving({ isRunning: true, rows: 0n });
    try {
      for await (const { event } of createClient(MaintenanceService, transport).verifyLedger({}, { signal })) {
        if (event.case === "progress") setProving({ isRunning: true, rows: event.value.rows });
        else if (event.case === "proof") setProving({ isRunning: false, rows: 0n, proof: event.value });
      }
    } catch (error) {
      if (!signal.aborted) setProving({ isRunning: false, rows: 0n, error });
    }
  };
  const { proof } = proving;
  return (
    <>
      <Head
        title="Ledger"
        about="Every account and every transfer of all organisations, added up anew as of one instant, while the server goes on."
      />
      <Stack>
        <Group>
          <Button onClick={() => void prove()} loading={proving.isRunning}>
            Prove the books
          </Button>
          {proving.isRunning && (
            <Text size="sm" role="status">
              {countText(proving.rows)} rows read
            </Text>
          )}
        </Group>
        {proving.error !== undefined && <Failure error={proving.error} />}
        {proof && (
          <Facts
            facts={[
              [
                "Proof",
                <span key="proof" role="status">
                  <State tone={proof.ok ? "good" : "bad"}>
                    {proof.ok ? "nothing is wrong" : `${countText(proof.faultCount)} faults`}
                  </State>
                </span>,
              ],
              ["Accounts", countText(proof.accounts)],
              ["Transfers", countText(proof.transfers)],
              ["Issued", `${creditsText(proof.issuedMicros)} credits`],
              ["Set aside", `${creditsText(proof.reservedMicros)} credits, ${countText(proof.liveReserves)} times`],
              ["Sum of all accounts", creditsText(proof.sumMicros)],
            ]}
          />
        )}
        {proof && proof.faults.length > 0 && (
          <List
            label="Faults"
            rows={proof.faults}
            schema={LedgerFaultSchema}
            columns={columns}
            keyOf={(one) => `${one.orgId} ${one.subjectId} ${one.description}`}
            isPending={false}
            error={undefined}
            empty={null}
          />
        )}
        <Text size="sm" c="dimmed">
          The same in a terminal, with the operator's key:
        </Text>
        <Command text="npx moltwire ledger verify" />
      </Stack>
    </>
  );
}
