import { useQuery } from "@connectrpc/connect-query";
import { Drawer, Group, Stack, Text, Title } from "@mantine/core";
import { TrustTier } from "../../../../gen/moltwire/bus/v1/agent_pb.ts";
import {
  type Grant,
  GrantAct,
  type GrantDayUsage,
  GrantDayUsageSchema,
  GrantParty,
  type GrantRevision,
  GrantRevisionSchema,
  GrantSchema,
  GrantState,
  type GrantTerms,
} from "../../../../gen/moltwire/federation/v1/grant_pb.ts";
import { GrantService } from "../../../../gen/moltwire/federation/v1/grant_service_pb.ts";
import { useRefresh } from "../live/use-live.ts";
import { Act } from "../parts/act.tsx";
import { useWord } from "../parts/address.ts";
import { AsCommand, callOf } from "../parts/command.tsx";
import { Failure } from "../parts/failure.tsx";
import { WordChoice } from "../parts/filters.tsx";
import { type Column, List } from "../parts/list.tsx";
import { usePages } from "../parts/pages.ts";
import { Empty, Facts, Head, Mono, Raw, Spark, State, type Tone } from "../parts/show.tsx";
import {
  agoText,
  choicesOf,
  countText,
  creditsText,
  enumText,
  enumWord,
  optionsText,
  shortId,
  timeText,
} from "../parts/text.ts";
import { useOrg } from "../session.ts";

const { listGrants, getGrant, getGrantUsage } = GrantService.method;
const { acceptGrant, declineGrant, suspendGrant, resumeGrant, revokeGrant } = GrantService.method;

const tones: Readonly<Record<number, Tone>> = {
  [GrantState.UNSPECIFIED]: "off",
  [GrantState.PROPOSED]: "wait",
  [GrantState.ACTIVE]: "good",
  [GrantState.SUSPENDED]: "wait",
  [GrantState.DECLINED]: "off",
  [GrantState.REVOKED]: "off",
  [GrantState.EXPIRED]: "off",
};

const subjectNames = { contractId: "contract", capability: "capability", namespace: "namespace" } as const;

const stateOf = ({ state }: { state: GrantState }) => (
  <State tone={tones[state] ?? "off"}>{enumText(GrantState, state)}</State>
);
const subjectOf = ({ subject }: Grant): string =>
  subject.case === "listingId"
    ? `listing ${shortId(subject.value)}`
    : `${subjectNames[subject.case ?? "contractId"]} ${subject.value}`;
const limitText = (limit: bigint | undefined): string => (limit === undefined ? "not limited" : countText(limit));

/** What organisations let each other use. */
export function Grants() {
  const orgId = useOrg();
  const [opened, open] = useWord("grant");
  const [state] = useWord("state");
  const [party] = useWord("party");
  const request = { orgId, state: Number(state) as GrantState, party: Number(party) as GrantParty };
  const grants = usePages(listGrants, request, (page) => page.grants);
  useRefresh([listGrants, getGrant], ({ type }) => type.startsWith("grant."));
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
      <Head
        title="Grants"
        cli={`npx moltwire grant list${optionsText({
          state: state && enumWord(GrantState, request.state),
          party: party && enumWord(GrantParty, request.party),
        })}`}
        call={callOf(listGrants, request)}
        onRefresh={grants.refetch}
      >
        <WordChoice word="state" label="State" choices={choicesOf(GrantState, "In any state")} />
        <WordChoice
          word="party"
          label="Given or got"
          choices={[
            { value: "", label: "Given and got" },
            { value: String(GrantParty.GRANTOR), label: "Given" },
            { value: String(GrantParty.GRANTEE), label: "Got" },
          ]}
        />
      </Head>
      <List
        label="Grants"
        {...grants.list}
        schema={GrantSchema}
        columns={columns}
        keyOf={({ grantId }) => grantId}
        onOpen={({ grantId }) => open(grantId)}
        empty={
          <Empty title="No grants" command="npx moltwire grant create org_… --capability research/search">
            A grant lets another organisation use a capability, a contract or a namespace of this one. To propose one:
          </Empty>
        }
      />
      <Drawer opened={opened !== ""} onClose={() => open("")} position="right" size="xl" title="Grant">
        {opened !== "" && <Details grantId={opened} />}
      </Drawer>
    </>
  );
}

function Details({ grantId }: { grantId: string }) {
  const orgId = useOrg();
  const { data, error } = useQuery(getGrant, { orgId, grantId });
  const grant = data?.grant;
  if (!grant) return error ? <Failure error={error} /> : null;
  const { terms } = grant;
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
          ["Requests a day", limitText(terms?.requestsPerDay)],
          ["Requests a minute", String(terms?.requestsPerMinute ?? "not limited")],
          ["Tokens a day", limitText(terms?.tokensPerDay)],
          [
            "Price of one",
            terms?.priceCapMicros === undefined ? "not limited" : `${creditsText(terms.priceCapMicros)} at most`,
          ],
          ["Trust", terms?.allowedTiers.map((tier) => enumText(TrustTier, tier)).join(", ")],
          ["Tools", terms?.allowedTools.join(", ")],
          ["Ends", terms?.expireTime ? timeText(terms.expireTime) : "not by itself"],
        ]}
      />
      <Group>
        <Acts grant={grant} />
        <AsCommand cli={`npx moltwire grant get ${grantId}`} call={callOf(getGrant, { orgId, grantId })} />
      </Group>
      <Usage grantId={grantId} terms={terms} />
      <Revisions grantId={grantId} />
      <Raw schema={GrantSchema} message={grant} />
    </Stack>
  );
}

/** What this organisation may do to it, by its state. */
function Acts({ grant }: { grant: Grant }) {
  const orgId = useOrg();
  const { grantId, state, revision } = grant;
  const isGot = grant.grantorOrgId !== orgId;
  const isProposed = state === GrantState.PROPOSED;
  const isAccepted = state === GrantState.ACTIVE || state === GrantState.SUSPENDED;
  const common = { request: { orgId, grantId, ifRevision: revision }, again: [listGrants, getGrant] };
  const cli = (verb: string) => `npx moltwire grant ${verb} ${grantId}`;
  return (
    <>
      {isProposed && isGot && (
        <Act
          {...common}
          label="Accept"
          tone="main"
          title="Accept this grant?"
          about="Agents of this organisation may ask for the work from then on, under these terms."
          method={acceptGrant}
          cli={cli("accept")}
        />
      )}
      {isProposed && isGot && (
        <Act
          {...common}
          label="Decline"
          title="Decline this grant?"
          about="That ends the proposal for good."
          method={declineGrant}
          cli={cli("decline")}
        />
      )}
      {state === GrantState.ACTIVE && !isGot && (
        <Act
          {...common}
          label="Suspend"
          title="Suspend this grant?"
          about="Nothing is done under it until it is resumed; open tasks end."
          method={suspendGrant}
          cli={cli("suspend")}
        />
      )}
      {state === GrantState.SUSPENDED && !isGot && (
        <Act
          {...common}
          label="Resume"
          title="Resume this grant?"
          about="Work may be asked for under it again."
          method={resumeGrant}
          cli={cli("resume")}
        />
      )}
      {(isAccepted || (isProposed && !isGot)) && (
        <Act
          {...common}
          label="Revoke"
          tone="bad"
          title="Revoke this grant?"
          about="That ends it for good, and the tasks that are open under it."
          method={revokeGrant}
          cli={cli("revoke")}
        />
      )}
    </>
  );
}

/** What was used under it by day, against what it allows. */
function Usage({ grantId, terms }: { grantId: string; terms: GrantTerms | undefined }) {
  const orgId = useOrg();
  const usage = usePages(getGrantUsage, { orgId, grantId }, ({ days }) => days);
  const { rows } = usage.list;
  const columns: readonly Column<GrantDayUsage>[] = [
    { name: "Day", show: ({ date }) => date },
    { name: "Requests", right: true, show: ({ requests }) => ofLimit(requests, terms?.requestsPerDay) },
    { name: "Refused", right: true, show: ({ denials }) => countText(denials) },
    { name: "Tokens", right: true, show: (day) => ofLimit(day.tokens + day.reservedTokens, terms?.tokensPerDay) },
    { name: "Credits", wide: true, right: true, show: ({ costMicros }) => creditsText(costMicros) },
  ];
  return (
    <>
      <Group justify="space-between">
        <Title order={3} size="h5">
          Usage by day
        </Title>
        <AsCommand cli={`npx moltwire grant usage ${grantId}`} call={callOf(getGrantUsage, { orgId, grantId })} />
      </Group>
      {rows.length > 1 && (
        <Spark values={rows.map(({ requests }) => Number(requests)).toReversed()} label="Requests by day" />
      )}
      <List
        label="Usage by day"
        {...usage.list}
        schema={GrantDayUsageSchema}
        columns={columns}
        keyOf={({ date }) => date}
        empty={<Text size="sm">Nothing was asked for under it yet.</Text>}
      />
    </>
  );
}

const ofLimit = (used: bigint, limit: bigint | undefined): string =>
  limit === undefined ? countText(used) : `${countText(used)} of ${countText(limit)}`;

/** What became of it. */
function Revisions({ grantId }: { grantId: string }) {
  const orgId = useOrg();
  const pages = usePages(getGrant, { orgId, grantId }, ({ revisions }) => revisions);
  const columns: readonly Column<GrantRevision>[] = [
    { name: "No.", right: true, show: ({ revision }) => String(revision) },
    { name: "What", show: ({ act }) => enumText(GrantAct, act) },
    { name: "By", show: ({ party }) => (party === GrantParty.UNSPECIFIED ? "time" : enumText(GrantParty, party)) },
    { name: "State", wide: true, show: stateOf },
    { name: "When", right: true, show: ({ createTime }) => timeText(createTime) },
  ];
  return (
    <>
      <Title order={3} size="h5">
        Revisions
      </Title>
      <List
        label="Revisions"
        {...pages.list}
        schema={GrantRevisionSchema}
        columns={columns}
        keyOf={({ revision }) => String(revision)}
        empty={<Text size="sm">None.</Text>}
      />
    </>
  );
}
