import { toJson } from "@bufbuild/protobuf";
import { ValueSchema } from "@bufbuild/protobuf/wkt";
import { useInfiniteQuery, useMutation, useQuery } from "@connectrpc/connect-query";
import { Anchor, Button, Drawer, Group, Select, Stack, Textarea, Title } from "@mantine/core";
import { Link } from "@tanstack/react-router";
import { useState } from "react";
import { type Approval, ApprovalSchema, ApprovalState } from "../../../../gen/moltwire/bus/v1/approval_pb.ts";
import { ApprovalService } from "../../../../gen/moltwire/bus/v1/approval_service_pb.ts";
import { useRefresh } from "../live/use-live.ts";
import { useWord } from "../parts/address.ts";
import { useReadAgain } from "../parts/again.ts";
import { AsCommand, callOf } from "../parts/command.tsx";
import { Failure } from "../parts/failure.tsx";
import { type Column, List } from "../parts/list.tsx";
import { useAgentNames } from "../parts/names.ts";
import { Payload } from "../parts/reveal.tsx";
import { Empty, Facts, Head, Json, Mono, State, type Tone } from "../parts/show.tsx";
import { agoText, countText, creditsText, enumText, timeText } from "../parts/text.ts";
import { useOrg } from "../session.ts";

const { listApprovals, getApproval, approve, deny } = ApprovalService.method;

const tones: Readonly<Record<number, Tone>> = {
  [ApprovalState.UNSPECIFIED]: "off",
  [ApprovalState.PENDING]: "wait",
  [ApprovalState.APPROVED]: "good",
  [ApprovalState.DENIED]: "bad",
  [ApprovalState.EXPIRED]: "bad",
  [ApprovalState.CANCELED]: "off",
};

const stateOf = (state: ApprovalState) => <State tone={tones[state] ?? "off"}>{enumText(ApprovalState, state)}</State>;
const settles = /^(approval\.|APPROVED|AWAITING_APPROVAL|REJECTED|CANCELED|COMPLETED|FAILED)/;

/** What waits for somebody's word, and what was decided. */
export function Approvals() {
  const orgId = useOrg();
  const nameOf = useAgentNames();
  const [word, setWord] = useWord("state");
  const [opened, open] = useWord("approval");
  const state = word === "" ? ApprovalState.PENDING : (Number(word) as ApprovalState);
  const approvals = useInfiniteQuery(
    listApprovals,
    { orgId, state, pageSize: 50, pageToken: "" },
    { pageParamKey: "pageToken", getNextPageParam: ({ nextPageToken }) => nextPageToken || undefined },
  );
  useRefresh([listApprovals, getApproval], ({ type }) => settles.test(type), 250);
  const columns: readonly Column<Approval>[] = [
    { name: "State", show: (one) => stateOf(one.state) },
    { name: "Contract", show: (one) => one.contractId },
    { name: "Asked by", wide: true, show: (one) => nameOf(one.callerAgentId) },
    { name: "Would do it", wide: true, show: (one) => nameOf(one.targetAgentId) },
    { name: "Why", wide: true, show: (one) => <div className="fit">{one.reasons.join("; ")}</div> },
    { name: "Age", right: true, show: (one) => agoText(one.createTime) },
  ];
  return (
    <>
      <Head title="Approvals" call={callOf(listApprovals, { orgId, state })}>
        <Select
          size="xs"
          aria-label="State"
          data={[
            { value: String(ApprovalState.PENDING), label: "Pending" },
            { value: String(ApprovalState.APPROVED), label: "Approved" },
            { value: String(ApprovalState.DENIED), label: "Denied" },
            { value: String(ApprovalState.EXPIRED), label: "Expired" },
            { value: String(ApprovalState.CANCELED), label: "Canceled" },
            { value: "0", label: "All" },
          ]}
          value={String(state)}
          onChange={(value) => setWord(value === String(ApprovalState.PENDING) ? "" : (value ?? ""))}
          allowDeselect={false}
        />
      </Head>
      <List
        label="Approvals"
        schema={ApprovalSchema}
        rows={approvals.data?.pages.flatMap((page) => page.approvals) ?? []}
        columns={columns}
        keyOf={({ approvalId }) => approvalId}
        onOpen={({ approvalId }) => open(approvalId)}
        isPending={approvals.isPending}
        error={approvals.error}
        more={approvals.hasNextPage ? () => void approvals.fetchNextPage() : undefined}
        isFetchingMore={approvals.isFetchingNextPage}
        empty={
          <Empty
            title={state === ApprovalState.PENDING ? "Nothing waits for you" : "None"}
            command="npx moltwire contract register careful 1.0.0 --capability echo --approval"
          >
            A task waits here when its contract asks for an approval, or a policy with @approval permits it. A contract
            that asks for one:
          </Empty>
        }
      />
      <Drawer opened={opened !== ""} onClose={() => open("")} position="right" size="lg" title="Approval">
        {opened !== "" && <Decision approvalId={opened} />}
      </Drawer>
    </>
  );
}

/** One approval with its input, and the two answers to it. */
function Decision({ approvalId }: { approvalId: string }) {
  const orgId = useOrg();
  const nameOf = useAgentNames();
  const readAgain = useReadAgain();
  const [note, setNote] = useState("");
  const { data, error } = useQuery(getApproval, { orgId, approvalId });
  const onSuccess = async () => {
    await readAgain([listApprovals, getApproval]);
  };
  const yes = useMutation(approve, { onSuccess });
  const no = useMutation(deny, { onSuccess });
  const approval = data?.approval;
  if (!approval) return error ? <Failure error={error} /> : null;
  const answer = { orgId, approvalId, digest: approval.digest, note };
  return (
    <Stack>
      <Facts
        facts={[
          ["State", stateOf(approval.state)],
          ["Contract", `${approval.contractId} ${approval.contractVersion}`],
          ["Asked by", nameOf(approval.callerAgentId)],
          ["With the key", <Mono key="key">{approval.callerKeyId}</Mono>],
          ["Would do it", nameOf(approval.targetAgentId)],
          ["Why", approval.reasons.join("; ")],
          [
            "Reserved",
            `${countText(approval.reservedTokens)} tokens, ${creditsText(approval.reservedCreditsMicros)} credits`,
          ],
          ["Asked", timeText(approval.createTime)],
          [
            approval.state === ApprovalState.PENDING ? "Denied unless decided by" : "Decided",
            timeText(approval.decideTime ?? approval.expireTime),
          ],
          ["Decided by", approval.decidedBy],
          ["Note", approval.note],
          [
            "Trace",
            <Anchor key="trace" component={Link} to={`/traces/${approval.traceId}`} size="sm">
              {approval.traceId}
            </Anchor>,
          ],
        ]}
      />
      <Title order={3} size="h5">
        Input
      </Title>
      <Payload subject={{ case: "approvalId", value: approvalId }}>
        <Json value={approval.input && toJson(ValueSchema, approval.input)} />
      </Payload>
      {approval.state === ApprovalState.PENDING && (
        <>
          <Textarea
            label="Note"
            description="Kept with the decision; of a denial it becomes part of the task’s error"
            value={note}
            onChange={(event) => setNote(event.currentTarget.value)}
            maxLength={2048}
            autosize
          />
          {(yes.error ?? no.error) && <Failure error={yes.error ?? no.error} />}
          <Group>
            <Button color="teal.9" onClick={() => yes.mutate(answer)} loading={yes.isPending}>
              Approve
            </Button>
            <Button color="red.9" onClick={() => no.mutate(answer)} loading={no.isPending}>
              Deny
            </Button>
            <AsCommand call={callOf(approve, answer)} />
          </Group>
        </>
      )}
    </Stack>
  );
}
