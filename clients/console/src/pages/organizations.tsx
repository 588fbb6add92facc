import { useInfiniteQuery, useMutation } from "@connectrpc/connect-query";
import { Button, Drawer, Group, Modal, Stack, Text, TextInput } from "@mantine/core";
import { useDisclosure } from "@mantine/hooks";
import { type FormEvent, useState } from "react";
import { type Organization, OrganizationSchema } from "../../../../gen/moltwire/federation/v1/organization_pb.ts";
import { OrganizationService } from "../../../../gen/moltwire/federation/v1/organization_service_pb.ts";
import { useWord } from "../parts/address.ts";
import { useReadAgain } from "../parts/again.ts";
import { AsCommand, callOf } from "../parts/command.tsx";
import { Failure } from "../parts/failure.tsx";
import { type Column, List } from "../parts/list.tsx";
import { Empty, Facts, Head, Mono, Raw, State } from "../parts/show.tsx";
import { agoText, shortId, timeText } from "../parts/text.ts";

const { listOrganizations, createOrganization, updateOrganization } = OrganizationService.method;

const stateOf = ({ disabled }: Organization) => (
  <State tone={disabled ? "off" : "good"}>{disabled ? "disabled" : "enabled"}</State>
);

/** Whom the server serves; for the operator. */
export function Organizations() {
  const [opened, open] = useState<Organization>();
  const [making, make] = useDisclosure(false);
  const organizations = useInfiniteQuery(
    listOrganizations,
    { pageSize: 50, pageToken: "" },
    { pageParamKey: "pageToken", getNextPageParam: ({ nextPageToken }) => nextPageToken || undefined },
  );
  const columns: readonly Column<Organization>[] = [
    { name: "State", show: stateOf },
    { name: "Name", show: ({ name }) => name },
    { name: "For people", wide: true, show: ({ displayName }) => <div className="fit">{displayName}</div> },
    { name: "Id", wide: true, show: ({ orgId }) => <Mono>{shortId(orgId)}</Mono> },
    { name: "Age", right: true, show: ({ createTime }) => agoText(createTime) },
  ];
  return (
    <>
      <Head
        title="Organisations"
        cli="npx moltwire org list"
        call={callOf(listOrganizations, {})}
        onRefresh={() => void organizations.refetch()}
      >
        <Button size="compact-sm" onClick={make.open}>
          New organisation
        </Button>
      </Head>
      <List
        label="Organisations"
        rows={organizations.data?.pages.flatMap((page) => page.organizations) ?? []}
        columns={columns}
        keyOf={({ orgId }) => orgId}
        onOpen={open}
        isPending={organizations.isPending}
        error={organizations.error}
        more={organizations.hasNextPage ? () => void organizations.fetchNextPage() : undefined}
        isFetchingMore={organizations.isFetchingNextPage}
        empty={
          <Empty title="No organisations" command="npx moltwire org create acme">
            To make one:
          </Empty>
        }
      />
      <Drawer
        opened={opened !== undefined}
        onClose={() => open(undefined)}
        position="right"
        size="lg"
        title="Organisation"
      >
        {opened && <Details organization={opened} onDone={() => open(undefined)} />}
      </Drawer>
      <Modal opened={making} onClose={make.close} title="New organisation">
        <NewOrganization onDone={make.close} />
      </Modal>
    </>
  );
}

function Details({ organization, onDone }: { organization: Organization; onDone: () => void }) {
  const readAgain = useReadAgain();
  const [, choose] = useWord("org");
  const { orgId, disabled, revision } = organization;
  const update = useMutation(updateOrganization, {
    onSuccess: async () => {
      onDone();
      await readAgain([listOrganizations]);
    },
  });
  const request = { orgId, change: { disabled: !disabled }, updateMask: { paths: ["disabled"] }, ifRevision: revision };
  return (
    <Stack>
      <Facts
        facts={[
          ["State", stateOf(organization)],
          ["Name", organization.name],
          ["For people", organization.displayName],
          ["Id", <Mono key="id">{orgId}</Mono>],
          ["Made", timeText(organization.createTime)],
        ]}
      />
      {!disabled && <Text size="sm">Disabled, all of its keys and sessions are refused at once.</Text>}
      {update.error && <Failure error={update.error} />}
      <Group>
        <Button
          onClick={() => {
            onDone();
            choose(orgId);
          }}
        >
          Look at it
        </Button>
        <Button variant="default" onClick={() => update.mutate(request)} loading={update.isPending}>
          {disabled ? "Enable" : "Disable"}
        </Button>
        <AsCommand
          cli={`npx moltwire org update ${orgId} ${disabled ? "--enable" : "--disable"}`}
          call={callOf(updateOrganization, request)}
        />
      </Group>
      <Raw schema={OrganizationSchema} message={organization} />
    </Stack>
  );
}

function NewOrganization({ onDone }: { onDone: () => void }) {
  const readAgain = useReadAgain();
  const [name, setName] = useState("");
  const [displayName, setDisplayName] = useState("");
  const create = useMutation(createOrganization, {
    onSuccess: async () => {
      onDone();
      await readAgain([listOrganizations]);
    },
  });
  const submit = (event: FormEvent) => {
    event.preventDefault();
    create.mutate({ name, displayName });
  };
  return (
    <form onSubmit={submit}>
      <Stack>
        <TextInput
          label="Name"
          description="Small letters, digits and -"
          value={name}
          onChange={(event) => setName(event.currentTarget.value)}
          maxLength={63}
          required
          data-autofocus
        />
        <TextInput
          label="For people"
          value={displayName}
          onChange={(event) => setDisplayName(event.currentTarget.value)}
          maxLength={128}
        />
        {create.error && <Failure error={create.error} />}
        <Button type="submit" loading={create.isPending}>
          Make
        </Button>
      </Stack>
    </form>
  );
}
