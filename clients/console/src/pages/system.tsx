import { useQuery } from "@connectrpc/connect-query";
import { Card, SimpleGrid, Table, Title } from "@mantine/core";
import { Role } from "../../../../gen/moltwire/api/v1/access_pb.ts";
import { MaintenanceService } from "../../../../gen/moltwire/ops/v1/maintenance_service_pb.ts";
import { type SlaWindow, StatusService } from "../../../../gen/moltwire/ops/v1/status_service_pb.ts";
import { SealedTableState } from "../../../../gen/moltwire/ops/v1/vault_pb.ts";
import { callOf } from "../parts/command.tsx";
import { Failure } from "../parts/failure.tsx";
import { Facts, Head, Mono, State } from "../parts/show.tsx";
import { countText, durationText, enumText, timeText } from "../parts/text.ts";
import { useSession } from "../session.ts";

const { getStatus, getSla } = StatusService.method;

const windowOf = (window: SlaWindow | undefined): string =>
  window?.uptimePercent === undefined
    ? "not known yet"
    : `${window.uptimePercent.toFixed(3)} % of ${countText(window.minutesTotal)} min, ${durationText(window.meanResponse)} in the mean`;

/** How the server is: version, storage, uptime, encryption. */
export function System() {
  const { session } = useSession();
  const isOperator = session.role === Role.OPERATOR;
  const status = useQuery(getStatus, {});
  const sla = useQuery(getSla, {});
  const vault = useQuery(MaintenanceService.method.getVaultStatus, {}, { enabled: isOperator });
  const details = status.data?.details;
  const sealed = vault.data?.status;
  const refresh = () => {
    void status.refetch();
    void sla.refetch();
    if (isOperator) void vault.refetch();
  };
  return (
    <>
      <Head title="System" cli="npx moltwire status" call={callOf(getStatus, {})} onRefresh={refresh} />
      {status.error && <Failure error={status.error} />}
      <SimpleGrid cols={{ base: 1, md: 2 }}>
        <Card withBorder>
          <Title order={2} size="h4" mb="sm">
            Server
          </Title>
          <Facts
            facts={[
              [
                "Health",
                status.data && (
                  <State tone={status.data.healthy ? "good" : "bad"}>
                    {status.data.healthy ? "healthy" : "not healthy"}
                  </State>
                ),
              ],
              ["Version", status.data?.version],
              ["Time there", timeText(status.data?.time)],
              ["Up for", durationText(status.data?.uptime)],
              ["Storage", details && `${details.engine}, schema ${details.schemaVersion}`],
              ["Organisations", details && countText(details.organizations)],
              ["Agents", details && countText(details.agents)],
              ["Contract versions", details && countText(details.contracts)],
              ["Tasks under way", details && countText(details.openTasks)],
              ["Open streams", details && countText(details.openStreams)],
            ]}
          />
        </Card>
        <Card withBorder>
          <Title order={2} size="h4" mb="sm">
            Uptime
          </Title>
          <Facts
            facts={[
              ["Aims at", sla.data && `${sla.data.targetPercent} %`],
              ["24 hours", windowOf(sla.data?.day)],
              ["7 days", windowOf(sla.data?.week)],
              ["30 days", windowOf(sla.data?.month)],
              ["Checked since", timeText(sla.data?.sinceTime)],
            ]}
          />
        </Card>
        <Card withBorder>
          <Title order={2} size="h4" mb="sm">
            Encryption at rest
          </Title>
          {vault.error && <Failure error={vault.error} />}
          <Facts
            facts={[
              [
                "State",
                <State key="state" tone={status.data?.encryptionAtRest ? "good" : "off"}>
                  {status.data?.encryptionAtRest ? "encrypted" : "not encrypted: start with MOLTWIRE_MASTER_KEY"}
                </State>,
              ],
              ["Master key", sealed?.encrypts && <Mono key="master">{sealed.masterKeyId}</Mono>],
              [
                "Data keys",
                sealed?.dataKeys &&
                  `${countText(sealed.dataKeys.active)} in use, ${countText(sealed.dataKeys.toRewrap)} left to wrap`,
              ],
              ["Old rows", sealed?.encrypts && (sealed.complete ? "all encrypted" : "being encrypted")],
            ]}
          />
          {(sealed?.tables.length ?? 0) > 0 && (
            <Table mt="sm" aria-label="Tables">
              <Table.Tbody>
                {sealed?.tables.map(({ table, state, rowsLeft }) => (
                  <Table.Tr key={table}>
                    <Table.Td>{table}</Table.Td>
                    <Table.Td>{enumText(SealedTableState, state)}</Table.Td>
                    <Table.Td ta="right">{rowsLeft > 0n && `${countText(rowsLeft)} left`}</Table.Td>
                  </Table.Tr>
                ))}
              </Table.Tbody>
            </Table>
          )}
        </Card>
      </SimpleGrid>
    </>
  );
}
