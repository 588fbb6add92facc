import { useInfiniteQuery, useMutation } from "@connectrpc/connect-query";
import { Button, Drawer, Group, Modal, Stack, Text, TextInput } from "@mantine/core";
import { useDisclosure } from "@mantine/hooks";
import { type FormEvent, useState } from "react";
import { Role } from "../../../../gen/moltwire/api/v1/access_pb.ts";
import { type ApiKey, ApiKeySchema } from "../../../../gen/moltwire/federation/v1/api_key_pb.ts";
import { ApiKeyService } from "../../../../gen/moltwire/federation/v1/api_key_service_pb.ts";
import { useReadAgain } from "../parts/again.ts";
import { AsCommand, Command, callOf } from "../parts/command.tsx";
import { Failure } from "../parts/failure.tsx";
import { type Column, List } from "../parts/list.tsx";
import { useAgentNames } from "../parts/names.ts";
import { Empty, Facts, Head, Mono, State } from "../parts/show.tsx";
import { agoText, enumText, shortId, timeText } from "../parts/text.ts";
import { useOrg } from "../session.ts";

const { listApiKeys, createApiKey, revokeApiKey } = ApiKeyService.method;

const stateOf = ({ revokeTime, expireTime }: ApiKey) => {
  if (revokeTime) return <State tone="off">revoked</State>;
  if (expireTime && Number(expireTime.seconds) * 1_000 <= Date.now()) return <State tone="off">expired</State>;
  return <State tone="good">live</State>;
};

/** Who may call, as whom. */
export function Keys() {
  const orgId = useOrg();
  const nameOf = useAgentNames();
  const [opened, open] = useState<ApiKey>();
  const [making, make] = useDisclosure(false);
  const keys = useInfiniteQuery(
    listApiKeys,
    { orgId, pageSize: 50, pageToken: "" },
    { pageParamKey: "pageToken", getNextPageParam: ({ nextPageToken }) => nextPageToken || undefined },
  );
  const columns: readonly Column<ApiKey>[] = [
    { name: "State", show: stateOf },
    { name: "Name", show: ({ name }) => name },
    { name: "Role", show: ({ role, agentId }) => (agentId ? nameOf(agentId) : enumText(Role, role)) },
    { name: "Key", wide: true, show: ({ keyId }) => <Mono>{shortId(keyId)}</Mono> },
    { name: "Last use", wide: true, right: true, show: ({ lastUsedTime }) => agoText(lastUsedTime) },
    { name: "Age", wide: true, right: true, show: ({ createTime }) => agoText(createTime) },
  ];
  return (
    <>
      <Head
        title="Keys"
        cli="npx moltwire key list"
        call={callOf(listApiKeys, { orgId })}
        onRefresh={() => void keys.refetch()}
      >
        <Button size="compact-sm" onClick={make.open}>
          New key
        </Button>
      </Head>
      <List
        label="Keys"
        schema={ApiKeySchema}
        rows={keys.data?.pages.flatMap((page) => page.apiKeys) ?? []}
        columns={columns}
        keyOf={({ keyId }) => keyId}
        onOpen={open}
        isPending={keys.isPending}
        error={keys.error}
        more={keys.hasNextPage ? () => void keys.fetchNextPage() : undefined}
        isFetchingMore={keys.isFetchingNextPage}
        empty={
          <Empty title="No keys" command="npx moltwire key create --agent parrot">
            A key speaks for an agent or for an administrator. To make one for an agent:
          </Empty>
        }
      />
      <Drawer opened={opened !== undefined} onClose={() => open(undefined)} position="right" size="lg" title="Key">
        {opened && <Details apiKey={opened} onDone={() => open(undefined)} />}
      </Drawer>
      <Modal opened={making} onClose={make.close} title="New key">
        <NewKey />
      </Modal>
    </>
  );
}

function Details({ apiKey, onDone }: { apiKey: ApiKey; onDone: () => void }) {
  const orgId = useOrg();
  const nameOf = useAgentNames();
  const readAgain = useReadAgain();
  const { keyId } = apiKey;
  const revoke = useMutation(revokeApiKey, {
    onSuccess: async () => {
      onDone();
      await readAgain([listApiKeys]);
    },
  });
  return (
    <Stack>
      <Facts
        facts={[
          ["State", stateOf(apiKey)],
          ["Id", <Mono key="id">{keyId}</Mono>],
          ["Name", apiKey.name],
          ["Role", enumText(Role, apiKey.role)],
          ["Agent", apiKey.agentId && nameOf(apiKey.agentId)],
          ["Only from", apiKey.allowedNetworks.join(", ") || "anywhere"],
          ["Requests a minute", apiKey.requestsPerMinute ? String(apiKey.requestsPerMinute) : "as its agent"],
          ["Scopes", apiKey.scopes.join(", ") || "all of its role"],
          ["Made", timeText(apiKey.createTime)],
          ["Expires", apiKey.expireTime ? timeText(apiKey.expireTime) : "never"],
          ["Revoked", apiKey.revokeTime && timeText(apiKey.revokeTime)],
          ["Last use", apiKey.lastUsedTime ? timeText(apiKey.lastUsedTime) : "never"],
        ]}
      />
      {revoke.error && <Failure error={revoke.error} />}
      <Group>
        {!apiKey.revokeTime && (
          <Button color="red.9" onClick={() => revoke.mutate({ orgId, keyId })} loading={revoke.isPending}>
            Revoke
          </Button>
        )}
        <AsCommand cli={`npx moltwire key revoke ${keyId}`} call={callOf(revokeApiKey, { orgId, keyId })} />
      </Group>
    </Stack>
  );
}

/** Makes a key and shows it, this once. */
function NewKey() {
  const orgId = useOrg();
  const readAgain = useReadAgain();
  const [name, setName] = useState("");
  const [agentId, setAgentId] = useState("");
  const create = useMutation(createApiKey, {
    onSuccess: () => readAgain([listApiKeys]),
  });
  const submit = (event: FormEvent) => {
    event.preventDefault();
    create.mutate({ orgId, name, agentId });
  };
  if (create.data)
    return (
      <Stack>
        <Text size="sm">Shown this once; the server keeps only its digest:</Text>
        <Command text={create.data.secret} />
      </Stack>
    );
  return (
    <form onSubmit={submit}>
      <Stack>
        <TextInput
          label="What it is for"
          value={name}
          onChange={(event) => setName(event.currentTarget.value)}
          maxLength={128}
        />
        <TextInput
          label="Agent"
          description="agt_…; empty: an administrator of the organisation"
          value={agentId}
          onChange={(event) => setAgentId(event.currentTarget.value.trim())}
          maxLength={64}
        />
        {create.error && <Failure error={create.error} />}
        <Button type="submit" loading={create.isPending}>
          Make
        </Button>
      </Stack>
    </form>
  );
}
