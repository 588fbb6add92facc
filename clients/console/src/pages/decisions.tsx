import { useInfiniteQuery } from "@connectrpc/connect-query";
import { Anchor, Drawer, Select, Stack, TextInput } from "@mantine/core";
import { Link } from "@tanstack/react-router";
import { useState } from "react";
import { type PolicyDecision, PolicyDecisionSchema, PolicyVerdict } from "../../../../gen/moltwire/bus/v1/policy_pb.ts";
import { PolicyService } from "../../../../gen/moltwire/bus/v1/policy_service_pb.ts";
import { useRefresh } from "../live/use-live.ts";
import { useWord } from "../parts/address.ts";
import { callOf } from "../parts/command.tsx";
import { type Column, List } from "../parts/list.tsx";
import { useAgentNames } from "../parts/names.ts";
import { Empty, Facts, Head, Raw, State } from "../parts/show.tsx";
import { agoText, timeText } from "../parts/text.ts";
import { useOrg } from "../session.ts";

const { listDecisions } = PolicyService.method;

const verdictOf = ({ answer }: PolicyDecision) => {
  if (answer?.verdict === PolicyVerdict.ALLOW) return <State tone="good">allowed</State>;
  if (answer?.verdict === PolicyVerdict.REQUIRE_APPROVAL) return <State tone="wait">needs approval</State>;
  return <State tone="bad">denied</State>;
};

/** What was decided, and why. */
export function Decisions() {
  const orgId = useOrg();
  const nameOf = useAgentNames();
  const [word, setWord] = useWord("verdict");
  const [policyId, setPolicyId] = useWord("policy");
  const [opened, open] = useState<PolicyDecision>();
  const verdict = Number(word) as PolicyVerdict;
  const decisions = useInfiniteQuery(
    listDecisions,
    { orgId, verdict, policyId, pageSize: 50, pageToken: "" },
    { pageParamKey: "pageToken", getNextPageParam: ({ nextPageToken }) => nextPageToken || undefined },
  );
  useRefresh([listDecisions], ({ type }) => type === "POLICY_DECIDED" || type === "APPROVED" || type === "REJECTED");
  const who = ({ question }: PolicyDecision) =>
    question?.principal?.type === "Agent" ? nameOf(question.principal.id) : "administrator";
  const what = ({ question }: PolicyDecision) =>
    `${question?.action} ${question?.resource?.type} ${question?.resource?.id}`;
  const columns: readonly Column<PolicyDecision>[] = [
    { name: "Verdict", show: verdictOf },
    { name: "Who", wide: true, show: who },
    { name: "What", show: (one) => <div className="fit">{what(one)}</div> },
    {
      name: "By",
      wide: true,
      show: ({ answer }) => (
        <div className="fit">{answer?.determiningPolicies.map((one) => one.policyId).join(", ") || "none permits"}</div>
      ),
    },
    { name: "Age", right: true, show: ({ time }) => agoText(time) },
  ];
  return (
    <>
      <Head title="Decisions" call={callOf(listDecisions, { orgId, verdict, policyId })}>
        <Select
          size="xs"
          aria-label="Verdict"
          data={[
            { value: "", label: "Every verdict" },
            { value: String(PolicyVerdict.ALLOW), label: "Allowed" },
            { value: String(PolicyVerdict.DENY), label: "Denied" },
            { value: String(PolicyVerdict.REQUIRE_APPROVAL), label: "Needs approval" },
          ]}
          value={word}
          onChange={(value) => setWord(value ?? "")}
          allowDeselect={false}
        />
        <TextInput
          size="xs"
          aria-label="Policy"
          placeholder="Policy, by its exact id"
          value={policyId}
          onChange={(event) => setPolicyId(event.currentTarget.value)}
        />
      </Head>
      <List
        label="Decisions"
        rows={decisions.data?.pages.flatMap((page) => page.decisions) ?? []}
        columns={columns}
        keyOf={({ decisionId }) => decisionId}
        onOpen={open}
        isPending={decisions.isPending}
        error={decisions.error}
        more={decisions.hasNextPage ? () => void decisions.fetchNextPage() : undefined}
        isFetchingMore={decisions.isFetchingNextPage}
        empty={
          <Empty title="No decisions" command={`npx moltwire submit echo '{"hello":"world"}'`}>
            Every task is decided on by policies, and each decision is kept with those that made it. To see one:
          </Empty>
        }
      />
      <Drawer opened={opened !== undefined} onClose={() => open(undefined)} position="right" size="lg" title="Decision">
        {opened && (
          <Stack>
            <Facts
              facts={[
                ["Verdict", verdictOf(opened)],
                ["Who", who(opened)],
                ["What", what(opened)],
                ["Why", opened.answer?.reasons.join("; ")],
                [
                  "By",
                  opened.answer?.determiningPolicies
                    .map((one) => `${one.policyId} (revision ${one.revision})`)
                    .join(", "),
                ],
                ["When", timeText(opened.time)],
                [
                  "Trace",
                  opened.traceId && (
                    <Anchor component={Link} to={`/traces/${opened.traceId}`} size="sm">
                      {opened.traceId}
                    </Anchor>
                  ),
                ],
              ]}
            />
            <Raw schema={PolicyDecisionSchema} message={opened} />
          </Stack>
        )}
      </Drawer>
    </>
  );
}
