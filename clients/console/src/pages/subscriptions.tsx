import { Anchor, Drawer, Group, Progress, Stack, Text } from "@mantine/core";
import { Link } from "@tanstack/react-router";
import {
  type Subscription,
  SubscriptionSchema,
  SubscriptionState,
} from "../../../../gen/moltwire/exchange/v1/subscription_pb.ts";
import { SubscriptionService } from "../../../../gen/moltwire/exchange/v1/subscription_service_pb.ts";
import { useRefresh } from "../live/use-live.ts";
import { Act } from "../parts/act.tsx";
import { useWord } from "../parts/address.ts";
import { AsCommand, callOf } from "../parts/command.tsx";
import { WordChoice } from "../parts/filters.tsx";
import { type Column, List } from "../parts/list.tsx";
import { planText } from "../parts/offer.tsx";
import { usePages } from "../parts/pages.ts";
import { Empty, Facts, Head, Mono, Raw, State, type Tone } from "../parts/show.tsx";
import { choicesOf, countText, enumText, shortId, timeText } from "../parts/text.ts";
import { useOrg } from "../session.ts";

const { listSubscriptions, cancelSubscription, subscribe } = SubscriptionService.method;

const tones: Readonly<Record<number, Tone>> = {
  [SubscriptionState.UNSPECIFIED]: "off",
  [SubscriptionState.ACTIVE]: "good",
  [SubscriptionState.PAUSED]: "bad",
  [SubscriptionState.ENDED]: "off",
};

const stateOf = ({ state, cancelAtPeriodEnd }: Subscription) => (
  <State tone={tones[state] ?? "off"}>
    {state === SubscriptionState.ACTIVE && cancelAtPeriodEnd ? "ends" : enumText(SubscriptionState, state)}
  </State>
);
const usedText = ({ usedRequests, plan }: Subscription): string =>
  `${countText(usedRequests)} of ${countText(plan?.includedRequests ?? 0n)}`;

/** What the organisation pays for in advance. */
export function Subscriptions() {
  const orgId = useOrg();
  const [state] = useWord("state");
  const [opened, open] = useWord("subscription");
  const request = { orgId, state: Number(state) as SubscriptionState };
  const subscriptions = usePages(listSubscriptions, request, (page) => page.subscriptions);
  useRefresh([listSubscriptions], ({ type }) => type.startsWith("subscription."));
  const columns: readonly Column<Subscription>[] = [
    { name: "State", show: stateOf },
    { name: "Plan", show: ({ plan }) => plan?.planId },
    { name: "Listing", wide: true, show: ({ listingId }) => <Mono>{shortId(listingId)}</Mono> },
    { name: "Used", right: true, show: usedText },
    { name: "Until", wide: true, right: true, show: ({ periodEndTime }) => timeText(periodEndTime) },
  ];
  return (
    <>
      <Head
        title="Subscriptions"
        about="Requests for listings that are paid for in advance, period by period."
        cli="npx moltwire subscription list"
        call={callOf(listSubscriptions, request)}
        onRefresh={subscriptions.refetch}
      >
        <WordChoice word="state" label="State" choices={choicesOf(SubscriptionState, "In any state")} />
      </Head>
      <List
        label="Subscriptions"
        {...subscriptions.list}
        schema={SubscriptionSchema}
        columns={columns}
        keyOf={({ subscriptionId }) => subscriptionId}
        onOpen={({ subscriptionId }) => open(subscriptionId)}
        empty={
          <Empty title="No subscriptions" command="npx moltwire subscription create lst_… monthly">
            A plan of a listing includes so many requests in each period, for one price. To subscribe to one:
          </Empty>
        }
      />
      <Drawer opened={opened !== ""} onClose={() => open("")} position="right" size="lg" title="Subscription">
        {opened !== "" && (
          <Details one={subscriptions.list.rows.find(({ subscriptionId }) => subscriptionId === opened)} />
        )}
      </Drawer>
    </>
  );
}

function Details({ one }: { one: Subscription | undefined }) {
  const orgId = useOrg();
  if (!one) return <Text size="sm">It is not among those that are shown.</Text>;
  const { subscriptionId, listingId, state, plan } = one;
  const included = Number(plan?.includedRequests ?? 0n);
  return (
    <Stack>
      <Facts
        facts={[
          ["State", stateOf(one)],
          ["Id", <Mono key="id">{subscriptionId}</Mono>],
          [
            "Listing",
            <Anchor key="listing" component={Link} to={`/catalog?listing=${listingId}`} size="sm" className="mono">
              {listingId}
            </Anchor>,
          ],
          ["Plan", plan && `${plan.planId}: ${planText(plan)}`],
          ["Period", `${timeText(one.periodStartTime)} to ${timeText(one.periodEndTime)}`],
          ["Then", one.cancelAtPeriodEnd ? "it ends" : "the next one is paid for"],
          ["Used", usedText(one)],
          ["Begun", timeText(one.createTime)],
        ]}
      />
      <Progress
        value={included === 0 ? 0 : Math.min(100, (100 * Number(one.usedRequests)) / included)}
        aria-label="Requests used"
      />
      <Group>
        {state === SubscriptionState.PAUSED && plan && (
          <Act
            label="Pay for a new period"
            tone="main"
            title="Go on with it?"
            about={planText(plan)}
            method={subscribe}
            request={{ orgId, listingId, planId: plan.planId }}
            cli={`npx moltwire subscription create ${listingId} ${plan.planId}`}
            again={[listSubscriptions]}
          />
        )}
        {state !== SubscriptionState.ENDED && !one.cancelAtPeriodEnd && (
          <Act
            label="Cancel"
            tone="bad"
            title="Cancel this subscription?"
            about="It ends with the period that is paid for; one that is paused ends at once. Nothing is paid back."
            method={cancelSubscription}
            request={{ orgId, subscriptionId }}
            cli={`npx moltwire subscription cancel ${subscriptionId}`}
            again={[listSubscriptions]}
          />
        )}
        <AsCommand cli="npx moltwire subscription list" call={callOf(listSubscriptions, { orgId, listingId })} />
      </Group>
      <Raw schema={SubscriptionSchema} message={one} />
    </Stack>
  );
}
