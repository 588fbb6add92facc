import { useMutation, useQuery } from "@connectrpc/connect-query";
import { Anchor, Button, Group, Stack, Text, Title } from "@mantine/core";
import { Link } from "@tanstack/react-router";
import { ApprovalState } from "../../../../gen/moltwire/bus/v1/approval_pb.ts";
import { ApprovalService } from "../../../../gen/moltwire/bus/v1/approval_service_pb.ts";
import { AdminService } from "../../../../gen/moltwire/ops/v1/admin_service_pb.ts";
import { useRefresh } from "../live/use-live.ts";
import { useOrg } from "../session.ts";
import { useReadAgain } from "./again.ts";
import { Failure } from "./failure.tsx";
import { useAgentNames } from "./names.ts";
import { agoText } from "./text.ts";

const { listApprovals, approve, deny } = ApprovalService.method;
const most = 5;

/** The tasks that wait for somebody's word, and the two answers; with its input each is on the page of approvals. */
export function Waiting() {
  const orgId = useOrg();
  const nameOf = useAgentNames();
  const readAgain = useReadAgain();
  const { data } = useQuery(listApprovals, { orgId, state: ApprovalState.PENDING, pageSize: most });
  useRefresh(
    [listApprovals],
    ({ type }) => /^(approval\.|APPROVED|AWAITING_APPROVAL|REJECTED|CANCELED)/.test(type),
    250,
  );
  const onSettled = () => readAgain([listApprovals, AdminService.method.getOverview]);
  const yes = useMutation(approve, { onSettled });
  const no = useMutation(deny, { onSettled });
  const approvals = data?.approvals ?? [];
  if (approvals.length === 0) return null;
  return (
    <Stack gap="xs" component="section" aria-label="Approvals that wait">
      <Title order={2} size="h4">
        Waiting for you
      </Title>
      {(yes.error ?? no.error) && <Failure error={yes.error ?? no.error} />}
      {approvals.map(({ approvalId, contractId, callerAgentId, digest, createTime }) => {
        const answer = { orgId, approvalId, digest };
        return (
          <Group key={approvalId} gap="xs" justify="space-between">
            <div>
              <Anchor component={Link} to="/approvals" search={{ approval: approvalId } as never} size="sm">
                {contractId}
              </Anchor>
              <Text size="xs" c="dimmed">
                asked for by {nameOf(callerAgentId)} {agoText(createTime)} ago
              </Text>
            </div>
            <Group gap="xs">
              <Button size="compact-sm" color="teal.9" onClick={() => yes.mutate(answer)} loading={yes.isPending}>
                Approve
              </Button>
              <Button size="compact-sm" color="red.9" onClick={() => no.mutate(answer)} loading={no.isPending}>
                Deny
              </Button>
            </Group>
          </Group>
        );
      })}
    </Stack>
  );
}
