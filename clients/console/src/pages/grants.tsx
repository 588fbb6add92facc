import { useInfiniteQuery, useMutation } from "@connectrpc/connect-query";
import { Button, Drawer, Group, Stack } from "@mantine/core";
import { useState } from "react";
import { type Grant, GrantSchema, GrantState } from "../../../../gen/moltwire/federation/v1/grant_pb.ts";
import { GrantService } from "../../../../gen/moltwire/federation/v1/grant_service_pb.ts";
import { useRefresh } from "../live/use-live.ts";
import { useReadAgain } from "../parts/again.ts";
import { AsCommand, callOf } from "../parts/command.tsx";
import { Failure } from "../parts/failure.tsx";
import { type Column, List } from "../parts/list.tsx";
import { Empty, Facts, Head, Mono, Raw, State, type Tone } from "../parts/show.tsx";
import { agoText, enumText, shortId, timeText } from "../parts/text.ts";
import { useOrg } from "../session.ts";

const { listGrants, acceptGrant, declineGrant, suspendGrant, resumeGrant, revokeGrant } = GrantService.method;

const tones: Readonly<Record<number, Tone>> = {
  [GrantState.UNSPECIFIED]: "off",
  [GrantState.PROPOSED]: "wait",
  [GrantState.ACTIVE]: "good",
  [GrantState.SUSPENDED]: "wait",
  [GrantState.DECLINED]: "off",
  [GrantState.REVOKED]: "off",
  [GrantState.EXPIRED]: "off",
};

const stateOf = ({ state }: Grant) => <State tone={tones[state] ?? "off"}>{enumText(GrantState, state)}</State>;
const subjectOf = ({ subject }: Grant): string => `${subject.case} ${subject.value}`;

/** What organisations let each other use. */
export function Grants() {
  const orgId = useOrg();
  const [opened, open] = useState<Grant>();
  const grants = useInfiniteQuery(
    listGrants,
    { orgId, pageSize: 50, pageToken: "" },
    { pageParamKey: "pageToken", getNextPageParam: ({ nextPageToken }) => nextPageToken || undefined },
  );
  useRefresh([listGrants], ({ type }) => type.startsWith("grant."));
  const columns: readonly Column<Grant>[] = [
    { name: "State", show: stateOf },
    { name: "Of", show: subjectOf },
    { name: "Given or got", show: ({ grantorOrgId }) => (grantorOrgId === orgId ? "given" : "got") },
    {
      name: "The other",
      wide: true,
      show: (one) => <Mono>{shortId(one.grantorOrgId === orgId ? one.granteeOrgId : one.grantorOrgId)}</Mono>,
    },
    { name: "Purpose", wide: true, show: ({ terms }) => <div className="fit">{terms?.purpose}</div> },
    { name: "Age", wide: true, right: true, show: ({ createTime }) => agoText(createTime) },
  ];
  return (
    <>
      <Head title="Grants" call={callOf(listGrants, { orgId })} onRefresh={() => void grants.refetch()} />
      <List
        label="Grants"
        rows={grants.data?.pages.flatMap((page) => page.grants) ?? []}
        columns={columns}
        keyOf={({ grantId }) => grantId}
        onOpen={open}
        isPending={grants.isPending}
        error={grants.error}
        more={grants.hasNextPage ? () => void grants.fetchNextPage() : undefined}
        isFetchingMore={grants.isFetchingNextPage}
        empty={
          <Empty
            title="No grants"
            command={`curl -sS ${window.location.origin}/moltwire.federation.v1.GrantService/CreateGrant \\\n  -H "authorization: Bearer $MOLTWIRE_API_KEY" -H 'content-type: application/json' \\\n  -d '{"granteeOrgId":"org_…","capability":"research/search"}'`}
          >
            A grant lets another organisation use a capability, a contract or a namespace of this one. To propose one:
          </Empty>
        }
      />
      <Drawer opened={opened !== undefined} onClose={() => open(undefined)} position="right" size="lg" title="Grant">
        {opened && <Details grant={opened} onDone={() => open(undefined)} />}
      </Drawer>
    </>
  );
}

function Details({ grant, onDone }: { grant: Grant; onDone: () => void }) {
  const orgId = useOrg();
  const readAgain = useReadAgain();
  const { grantId, state, terms } = grant;
  const onSuccess = async () => {
    onDone();
    await readAgain([listGrants]);
  };
  const accept = useMutation(acceptGrant, { onSuccess });
  const decline = useMutation(declineGrant, { onSuccess });
  const suspend = useMutation(suspendGrant, { onSuccess });
  const resume = useMutation(resumeGrant, { onSuccess });
  const revoke = useMutation(revokeGrant, { onSuccess });
  const request = { orgId, grantId, ifRevision: grant.revision };
  const isGot = grant.grantorOrgId !== orgId;
  const error = accept.error ?? decline.error ?? suspend.error ?? resume.error ?? revoke.error;
  const isLive = state === GrantState.ACTIVE || state === GrantState.SUSPENDED || state === GrantState.PROPOSED;
  return (
    <Stack>
      <Facts
        facts={[
          ["State", stateOf(grant)],
          ["Of", subjectOf(grant)],
          ["Id", <Mono key="id">{grantId}</Mono>],
          ["Given by", <Mono key="by">{grant.grantorOrgId}</Mono>],
          ["To", <Mono key="to">{grant.granteeOrgId}</Mono>],
          ["Purpose", terms?.purpose],
          ["Requests a day", terms?.requestsPerDay === undefined ? "not limited" : String(terms.requestsPerDay)],
          ["Requests a minute", String(terms?.requestsPerMinute ?? "not limited")],
          ["Tokens a day", terms?.tokensPerDay === undefined ? "not limited" : String(terms.tokensPerDay)],
          ["Ends", terms?.expireTime ? timeText(terms.expireTime) : "not by itself"],
        ]}
      />
      {error && <Failure error={error} />}
      <Group>
        {state === GrantState.PROPOSED && isGot && <Button onClick={() => accept.mutate(request)}>Accept</Button>}
        {state === GrantState.PROPOSED && isGot && (
          <Button variant="default" onClick={() => decline.mutate(request)}>
            Decline
          </Button>
        )}
        {state === GrantState.ACTIVE && (
          <Button variant="default" onClick={() => suspend.mutate(request)}>
            Suspend
          </Button>
        )}
        {state === GrantState.SUSPENDED && (
          <Button variant="default" onClick={() => resume.mutate(request)}>
            Resume
          </Button>
        )}
        {isLive && !(state === GrantState.PROPOSED && isGot) && (
          <Button color="red.9" onClick={() => revoke.mutate(request)}>
            Revoke
          </Button>
        )}
        <AsCommand call={callOf(revokeGrant, request)} />
      </Group>
      <Raw schema={GrantSchema} message={grant} />
    </Stack>
  );
}
