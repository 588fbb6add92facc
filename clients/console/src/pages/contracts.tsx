import { fromJson, type JsonValue } from "@bufbuild/protobuf";
import { ValueSchema } from "@bufbuild/protobuf/wkt";
import { useInfiniteQuery, useMutation, useQuery } from "@connectrpc/connect-query";
import { Anchor, Button, Drawer, Group, Stack, Tabs, Text, Textarea, TextInput, Title } from "@mantine/core";
import { Link } from "@tanstack/react-router";
import { useState } from "react";
import { TrustTier } from "../../../../gen/moltwire/bus/v1/agent_pb.ts";
import { BusService } from "../../../../gen/moltwire/bus/v1/bus_service_pb.ts";
import { type Contract, ContractSchema } from "../../../../gen/moltwire/bus/v1/contract_pb.ts";
import { ContractService } from "../../../../gen/moltwire/bus/v1/contract_service_pb.ts";
import { TaskSchema, TaskState } from "../../../../gen/moltwire/bus/v1/task_pb.ts";
import { useWord } from "../parts/address.ts";
import { callOf } from "../parts/command.tsx";
import { Failure } from "../parts/failure.tsx";
import { type Column, List } from "../parts/list.tsx";
import { Empty, Facts, Head, Json, Raw, State } from "../parts/show.tsx";
import { agoText, countText, durationText, enumText, timeText } from "../parts/text.ts";
import { useOrg } from "../session.ts";

const { listContracts, getContract } = ContractService.method;

/** What can be asked for. */
export function Contracts() {
  const orgId = useOrg();
  const [contractId, setContractId] = useWord("contract");
  const [opened, open] = useWord("version");
  const contracts = useInfiniteQuery(
    listContracts,
    { orgId, contractId, pageSize: 50, pageToken: "" },
    { pageParamKey: "pageToken", getNextPageParam: ({ nextPageToken }) => nextPageToken || undefined },
  );
  const columns: readonly Column<Contract>[] = [
    { name: "Contract", show: (one) => one.contractId },
    { name: "Version", show: (one) => one.version },
    {
      name: "State",
      wide: true,
      show: ({ deprecated }) => <State tone={deprecated ? "off" : "good"}>{deprecated ? "deprecated" : "open"}</State>,
    },
    { name: "Capability", wide: true, show: (one) => one.capability },
    { name: "Timeout", wide: true, right: true, show: (one) => durationText(one.timeout) },
    { name: "Approval", wide: true, show: (one) => (one.approvalRequired ? "needed" : "") },
    { name: "Age", right: true, show: (one) => agoText(one.createTime) },
  ];
  const keyOf = (one: Contract) => `${one.contractId}@${one.version}`;
  return (
    <>
      <Head
        title="Contracts"
        cli={`npx moltwire contract list${contractId && ` --contract ${contractId}`}`}
        call={callOf(listContracts, { orgId, contractId })}
        onRefresh={() => void contracts.refetch()}
      >
        <TextInput
          size="xs"
          aria-label="Contract"
          placeholder="Contract, by its exact id"
          value={contractId}
          onChange={(event) => setContractId(event.currentTarget.value)}
        />
      </Head>
      <List
        label="Contracts"
        rows={contracts.data?.pages.flatMap((page) => page.contracts) ?? []}
        columns={columns}
        keyOf={keyOf}
        onOpen={(one) => open(keyOf(one))}
        isPending={contracts.isPending}
        error={contracts.error}
        more={contracts.hasNextPage ? () => void contracts.fetchNextPage() : undefined}
        isFetchingMore={contracts.isFetchingNextPage}
        empty={
          <Empty
            title="No contracts"
            command={`npx moltwire contract register repeat 1.0.0 --input '{"required":["text"]}' --timeout 5s`}
          >
            A contract names a capability and says what goes in and what comes out. To register one:
          </Empty>
        }
      />
      <Drawer opened={opened !== ""} onClose={() => open("")} position="right" size="xl" title={opened}>
        {opened !== "" && (
          <Details
            contractId={opened.slice(0, opened.lastIndexOf("@"))}
            version={opened.slice(opened.lastIndexOf("@") + 1)}
          />
        )}
      </Drawer>
    </>
  );
}

/** One version: its terms, its schemas, and a try. */
function Details({ contractId, version }: { contractId: string; version: string }) {
  const orgId = useOrg();
  const { data, error } = useQuery(getContract, { orgId, contractId, version });
  const contract = data?.contract;
  if (!contract) return error ? <Failure error={error} /> : null;
  return (
    <Tabs defaultValue="about">
      <Tabs.List>
        <Tabs.Tab value="about">About</Tabs.Tab>
        <Tabs.Tab value="schemas">Schemas</Tabs.Tab>
        <Tabs.Tab value="try">Try it</Tabs.Tab>
        <Tabs.Tab value="raw">Raw</Tabs.Tab>
      </Tabs.List>
      <Tabs.Panel value="about" pt="md">
        <Stack>
          {contract.description && <Text size="sm">{contract.description}</Text>}
          <Facts
            facts={[
              ["Capability", contract.capability],
              ["State", contract.deprecated ? `deprecated ${timeText(contract.deprecateTime)}` : "open"],
              ["Trust", `${enumText(TrustTier, contract.securityClass)} or more`],
              ["Tools", contract.requiredTools.join(", ")],
              ["Timeout", durationText(contract.timeout)],
              ["Repeatable", contract.repeatable ? "yes" : "no: after a lost answer a task ends as OUTCOME_UNKNOWN"],
              ["Retries", String(contract.retryPolicy?.maxRetries ?? 0)],
              ["Approval", contract.approvalRequired ? "each task needs one" : "not needed"],
              ["Fallbacks", contract.fallbacks.map(({ contractId, version }) => `${contractId} ${version}`).join(", ")],
              ["Tokens", contract.maxTokens > 0n ? `at most ${countText(contract.maxTokens)}` : "no bound"],
              ["Namespace", contract.namespace],
              ["Registered", timeText(contract.createTime)],
            ]}
          />
        </Stack>
      </Tabs.Panel>
      <Tabs.Panel value="schemas" pt="md">
        <Stack>
          <Title order={3} size="h5">
            Input
          </Title>
          <Json value={contract.inputSchema ?? {}} />
          <Title order={3} size="h5">
            Output
          </Title>
          <Json value={contract.outputSchema ?? {}} />
        </Stack>
      </Tabs.Panel>
      <Tabs.Panel value="try" pt="md">
        <Try contract={contract} />
      </Tabs.Panel>
      <Tabs.Panel value="raw" pt="md">
        <Raw schema={ContractSchema} message={contract} />
      </Tabs.Panel>
    </Tabs>
  );
}

/** Submits a task under the contract and shows what comes of it. */
function Try({ contract: { contractId, version, inputSchema } }: { contract: Contract }) {
  const orgId = useOrg();
  const [text, setText] = useState(() => JSON.stringify(exampleOf(inputSchema ?? {}), null, 2));
  const [fault, setFault] = useState("");
  const submit = useMutation(BusService.method.submitTask);
  const send = () => {
    try {
      const input = fromJson(ValueSchema, JSON.parse(text) as JsonValue);
      setFault("");
      submit.mutate({ orgId, contractId, contractVersion: version, input });
    } catch (error) {
      setFault(error instanceof Error ? error.message : String(error));
    }
  };
  const task = submit.data?.task;
  return (
    <Stack>
      <Textarea
        label="Input"
        description="JSON that fits the input schema; the task is a real one"
        value={text}
        onChange={(event) => setText(event.currentTarget.value)}
        error={fault}
        autosize
        minRows={4}
        maxRows={16}
        classNames={{ input: "mono" }}
      />
      <Group>
        <Button onClick={send} loading={submit.isPending}>
          Submit
        </Button>
        {task && (
          <Anchor component={Link} to={`/traces/${task.traceId}`} size="sm">
            Its trace
          </Anchor>
        )}
      </Group>
      {submit.error && <Failure error={submit.error} />}
      {task && (
        <>
          <State tone={task.state === TaskState.COMPLETED ? "good" : task.state === TaskState.FAILED ? "bad" : "wait"}>
            {enumText(TaskState, task.state)}
          </State>
          <Raw schema={TaskSchema} message={task} />
        </>
      )}
    </Stack>
  );
}

/** Something that the schema may take: its required properties, by their types. */
function exampleOf(schema: JsonValue, depth = 0): JsonValue {
  if (typeof schema !== "object" || schema === null || Array.isArray(schema) || depth > 8) return null;
  if (schema.const !== undefined) return schema.const;
  if (schema.default !== undefined) return schema.default;
  if (Array.isArray(schema.enum)) return schema.enum[0] ?? null;
  if (Array.isArray(schema.examples)) return schema.examples[0] ?? null;
  const required = Array.isArray(schema.required) ? schema.required.map(String) : [];
  const properties = (schema.properties ?? {}) as Record<string, JsonValue>;
  const names = required.length > 0 ? required : Object.keys(properties);
  const type = Array.isArray(schema.type) ? schema.type[0] : schema.type;
  if (type === "object" || (type === undefined && names.length > 0))
    return Object.fromEntries(
      names.map((name) => [name, exampleOf(properties[name] ?? { type: "string" }, depth + 1)]),
    );
  if (type === "array") return schema.items === undefined ? [] : [exampleOf(schema.items, depth + 1)];
  if (type === "string") return "text";
  if (type === "number" || type === "integer") return typeof schema.minimum === "number" ? schema.minimum : 1;
  if (type === "boolean") return true;
  return type === "null" ? null : {};
}
