import { useInfiniteQuery, useMutation, useQuery } from "@connectrpc/connect-query";
import { Button, Drawer, Group, Stack, Switch, Text, Textarea, TextInput } from "@mantine/core";
import { useState } from "react";
import { type Policy, PolicyEffect, PolicyOrigin, PolicySchema } from "../../../../gen/moltwire/bus/v1/policy_pb.ts";
import { PolicyService } from "../../../../gen/moltwire/bus/v1/policy_service_pb.ts";
import { useWord } from "../parts/address.ts";
import { useReadAgain } from "../parts/again.ts";
import { AsCommand, callOf } from "../parts/command.tsx";
import { Failure } from "../parts/failure.tsx";
import { type Column, List } from "../parts/list.tsx";
import { Empty, Facts, Head, State } from "../parts/show.tsx";
import { timeText } from "../parts/text.ts";
import { useOrg } from "../session.ts";

const { listPolicies, getPolicy, putPolicy, deletePolicy } = PolicyService.method;

const effectOf = ({ effect }: Policy) =>
  effect === PolicyEffect.FORBID ? <State tone="bad">forbids</State> : <State tone="good">permits</State>;

/** What new policies begin as. */
const draft = `forbid (
  principal,
  action == Action::"invoke",
  resource == Contract::"payments/transfer"
);`;
const isNew = "new";

/** Who may do what: the built-in policies and the organisation's own. */
export function Policies() {
  const orgId = useOrg();
  const [opened, open] = useWord("policy");
  const policies = useInfiniteQuery(
    listPolicies,
    { orgId, pageSize: 50, pageToken: "" },
    { pageParamKey: "pageToken", getNextPageParam: ({ nextPageToken }) => nextPageToken || undefined },
  );
  const columns: readonly Column<Policy>[] = [
    { name: "Policy", show: ({ policyId }) => policyId },
    { name: "Effect", show: effectOf },
    {
      name: "State",
      wide: true,
      show: ({ disabled }) => <State tone={disabled ? "off" : "good"}>{disabled ? "disabled" : "holds"}</State>,
    },
    { name: "About", wide: true, show: ({ description }) => <div className="fit">{description}</div> },
    { name: "Revision", wide: true, right: true, show: ({ revision }) => String(revision) },
  ];
  return (
    <>
      <Head title="Policies" call={callOf(listPolicies, { orgId })} onRefresh={() => void policies.refetch()}>
        <Button size="compact-sm" onClick={() => open(isNew)}>
          New policy
        </Button>
      </Head>
      <List
        label="Policies"
        schema={PolicySchema}
        rows={policies.data?.pages.flatMap((page) => page.policies) ?? []}
        columns={columns}
        keyOf={({ policyId }) => policyId}
        onOpen={({ policyId }) => open(policyId)}
        isPending={policies.isPending}
        error={policies.error}
        more={policies.hasNextPage ? () => void policies.fetchNextPage() : undefined}
        isFetchingMore={policies.isFetchingNextPage}
        empty={<Empty title="No policies">The built-in ones should be here.</Empty>}
      />
      <Drawer
        opened={opened !== ""}
        onClose={() => open("")}
        position="right"
        size="xl"
        title={opened === isNew ? "New policy" : opened}
      >
        {opened === isNew && <Editor key={isNew} onDone={() => open("")} />}
        {opened !== "" && opened !== isNew && <Existing key={opened} policyId={opened} onDone={() => open("")} />}
      </Drawer>
    </>
  );
}

function Existing({ policyId, onDone }: { policyId: string; onDone: () => void }) {
  const orgId = useOrg();
  const { data, error } = useQuery(getPolicy, { orgId, policyId });
  if (!data?.policy) return error ? <Failure error={error} /> : null;
  const { policy } = data;
  if (policy.origin !== PolicyOrigin.BUILTIN) return <Editor policy={policy} onDone={onDone} />;
  return (
    <Stack>
      <Facts
        facts={[
          ["Effect", effectOf(policy)],
          ["Origin", "built in: it cannot be changed, but a forbid of yours wins over it"],
        ]}
      />
      <Text size="sm">{policy.description}</Text>
      {/* biome-ignore lint/a11y/noNoninteractiveTabindex: what scrolls has to be reachable by keyboard */}
      <pre className="json" tabIndex={0}>
        {policy.cedarText}
      </pre>
    </Stack>
  );
}

/** A policy to write or to change. What is wrong with its text stands below it, with line and column. */
function Editor({ policy, onDone }: { policy?: Policy; onDone: () => void }) {
  const orgId = useOrg();
  const readAgain = useReadAgain();
  const [policyId, setPolicyId] = useState(policy?.policyId ?? "");
  const [cedarText, setCedarText] = useState(policy?.cedarText ?? draft);
  const [description, setDescription] = useState(policy?.description ?? "");
  const [disabled, setDisabled] = useState(policy?.disabled ?? false);
  const onSuccess = async () => {
    await readAgain([listPolicies, getPolicy]);
  };
  const put = useMutation(putPolicy, { onSuccess });
  const remove = useMutation(deletePolicy, {
    onSuccess: async () => {
      onDone();
      await onSuccess();
    },
  });
  const request = {
    orgId,
    policyId,
    cedarText,
    description,
    disabled,
    ifRevision: put.data?.policy?.revision ?? policy?.revision ?? 0n,
  };
  return (
    <Stack>
      <TextInput
        label="Id"
        description="Letters, digits, . _ -; decisions and errors name it"
        value={policyId}
        onChange={(event) => setPolicyId(event.currentTarget.value)}
        disabled={policy !== undefined}
        maxLength={128}
        required
      />
      <TextInput
        label="About"
        value={description}
        onChange={(event) => setDescription(event.currentTarget.value)}
        maxLength={512}
      />
      <Textarea
        label="Cedar"
        description="One permit or forbid; @approval(“why”) on a permit lets through only what somebody approves"
        value={cedarText}
        onChange={(event) => setCedarText(event.currentTarget.value)}
        autosize
        minRows={8}
        maxRows={24}
        spellCheck={false}
        classNames={{ input: "mono" }}
      />
      <Switch
        label="Keep it without letting it have a say"
        checked={disabled}
        onChange={(event) => setDisabled(event.currentTarget.checked)}
      />
      {(put.error ?? remove.error) && <Failure error={put.error ?? remove.error} />}
      {put.data && !put.error && (
        <Text size="sm" role="status">
          <State tone="good">Saved as revision {String(put.data.policy?.revision)}</State>
        </Text>
      )}
      {put.data?.warnings.map(({ line, column, message }) => (
        <Text key={`${line}:${column}`} size="sm">
          <State tone="wait">
            Line {line}, column {column}: {message}
          </State>
        </Text>
      ))}
      <Group>
        <Button onClick={() => put.mutate(request)} loading={put.isPending} disabled={policyId === ""}>
          Save
        </Button>
        {policy && (
          <Button
            color="red.9"
            onClick={() => remove.mutate({ orgId, policyId, ifRevision: request.ifRevision })}
            loading={remove.isPending}
          >
            Delete
          </Button>
        )}
        <AsCommand call={callOf(putPolicy, request)} />
      </Group>
      {policy && (
        <Facts
          facts={[
            ["Changed", timeText(policy.updateTime)],
            ["Revision", String(policy.revision)],
          ]}
        />
      )}
    </Stack>
  );
}
