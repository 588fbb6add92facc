import { useInfiniteQuery, useMutation } from "@connectrpc/connect-query";
import { Button, Drawer, NumberInput, Progress, Select, Stack, Text, TextInput } from "@mantine/core";
import { type FormEvent, useState } from "react";
import { type Budget, BudgetPeriod, BudgetSchema, BudgetScope } from "../../../../gen/moltwire/bus/v1/budget_pb.ts";
import { BudgetService } from "../../../../gen/moltwire/bus/v1/budget_service_pb.ts";
import { useRefresh } from "../live/use-live.ts";
import { useWord } from "../parts/address.ts";
import { useReadAgain } from "../parts/again.ts";
import { AsCommand, callOf } from "../parts/command.tsx";
import { Failure } from "../parts/failure.tsx";
import { type Column, List } from "../parts/list.tsx";
import { useAgentNames } from "../parts/names.ts";
import { Empty, Head } from "../parts/show.tsx";
import { countText, creditsText, enumText, timeText } from "../parts/text.ts";
import { useOrg } from "../session.ts";

const { listBudgets, setBudget } = BudgetService.method;
const microsPerCredit = 1_000_000;

const scopes = Object.entries(BudgetScope)
  .filter(([, scope]) => scope !== BudgetScope.UNSPECIFIED)
  .map(([, scope]) => ({ value: String(scope), label: enumText(BudgetScope, Number(scope)) }));
const periods = [
  { value: String(BudgetPeriod.DAY), label: "each day, in UTC" },
  { value: String(BudgetPeriod.TOTAL), label: "in all" },
];

/** What tasks may use, and how much of it is left. */
export function Budgets() {
  const orgId = useOrg();
  const nameOf = useAgentNames();
  const [opened, open] = useState<Budget | "new">();
  const [word, setWord] = useWord("used");
  const minUsedPercent = Number(word);
  const budgets = useInfiniteQuery(
    listBudgets,
    { orgId, minUsedPercent, pageSize: 50, pageToken: "" },
    { pageParamKey: "pageToken", getNextPageParam: ({ nextPageToken }) => nextPageToken || undefined },
  );
  useRefresh([listBudgets], ({ type }) => type.startsWith("budget.") || type === "BUDGETED", 1_000);
  const subject = ({ scope, subjectId }: Budget) =>
    scope === BudgetScope.AGENT && subjectId !== "*" ? nameOf(subjectId) : subjectId === "*" ? "each" : subjectId;
  const columns: readonly Column<Budget>[] = [
    { name: "Of", show: (one) => `${enumText(BudgetScope, one.scope)} ${subject(one)}` },
    { name: "Period", wide: true, show: (one) => (one.period === BudgetPeriod.DAY ? "day" : "in all") },
    {
      name: "Tokens",
      show: ({ tokens }) =>
        tokens && <Used limit={tokens.limit} spent={tokens.spent} reserved={tokens.reserved} text={countText} />,
    },
    {
      name: "Credits",
      wide: true,
      show: ({ credits }) =>
        credits && (
          <Used
            limit={credits.limitMicros}
            spent={credits.spentMicros}
            reserved={credits.reservedMicros}
            text={creditsText}
          />
        ),
    },
    { name: "Begins anew", wide: true, show: (one) => (one.resetTime ? timeText(one.resetTime) : "never") },
  ];
  return (
    <>
      <Head
        title="Budgets"
        call={callOf(listBudgets, { orgId, minUsedPercent })}
        onRefresh={() => void budgets.refetch()}
      >
        <Select
          size="xs"
          aria-label="Used"
          data={[
            { value: "", label: "All" },
            { value: "80", label: "80 % used or more" },
            { value: "100", label: "Used up" },
          ]}
          value={word}
          onChange={(value) => setWord(value ?? "")}
          allowDeselect={false}
        />
        <Button size="compact-sm" onClick={() => open("new")}>
          Set a budget
        </Button>
      </Head>
      <List
        label="Budgets"
        schema={BudgetSchema}
        rows={budgets.data?.pages.flatMap((page) => page.budgets) ?? []}
        columns={columns}
        keyOf={({ scope, subjectId, period }) => `${scope} ${subjectId} ${period}`}
        onOpen={open}
        isPending={budgets.isPending}
        error={budgets.error}
        more={budgets.hasNextPage ? () => void budgets.fetchNextPage() : undefined}
        isFetchingMore={budgets.isFetchingNextPage}
        empty={
          <Empty title="No budgets">
            A budget bounds the tokens or credits of the organisation, an agent, a key, a model, a trace or a grant:
            what a task may use is set aside when it is accepted, and no task passes beyond it.
          </Empty>
        }
      />
      <Drawer opened={opened !== undefined} onClose={() => open(undefined)} position="right" size="lg" title="Budget">
        {opened && <Limits {...(opened !== "new" && { budget: opened })} onDone={() => open(undefined)} />}
      </Drawer>
    </>
  );
}

type UsedProps = {
  readonly limit: bigint;
  readonly spent: bigint;
  readonly reserved: bigint;
  readonly text: (n: bigint) => string;
};

function Used({ limit, spent, reserved, text }: UsedProps) {
  const share = (n: bigint) => (limit === 0n ? 100 : Math.min(100, (Number(n) / Number(limit)) * 100));
  const label = `${text(spent)} spent and ${text(reserved)} reserved of ${text(limit)}`;
  return (
    <div>
      <Progress.Root size="sm" miw={80}>
        <Progress.Section
          value={share(spent)}
          color={share(spent + reserved) >= 100 ? "red.8" : "indigo.6"}
          aria-label={label}
        />
        <Progress.Section value={Math.min(100 - share(spent), share(reserved))} color="indigo.3" aria-hidden />
      </Progress.Root>
      <Text size="xs">
        {text(spent)}
        {reserved > 0n && ` + ${text(reserved)}`} of {text(limit)}
      </Text>
    </div>
  );
}

/** The limits of a budget, to be set. */
function Limits({ budget, onDone }: { budget?: Budget; onDone: () => void }) {
  const orgId = useOrg();
  const readAgain = useReadAgain();
  const [scope, setScope] = useState(String(budget?.scope ?? BudgetScope.ORG));
  const [subjectId, setSubjectId] = useState(budget?.subjectId ?? "");
  const [period, setPeriod] = useState(String(budget?.period ?? BudgetPeriod.DAY));
  const [tokens, setTokens] = useState<string | number>(budget?.tokens ? Number(budget.tokens.limit) : "");
  const [credits, setCredits] = useState<string | number>(
    budget?.credits ? Number(budget.credits.limitMicros) / microsPerCredit : "",
  );
  const set = useMutation(setBudget, {
    onSuccess: async () => {
      onDone();
      await readAgain([listBudgets]);
    },
  });
  const request = {
    orgId,
    scope: Number(scope) as BudgetScope,
    subjectId: Number(scope) === BudgetScope.ORG ? "" : subjectId,
    period: Number(period) as BudgetPeriod,
    ...(tokens !== "" && { limitTokens: BigInt(Math.round(Number(tokens))) }),
    ...(credits !== "" && { limitCreditsMicros: BigInt(Math.round(Number(credits) * microsPerCredit)) }),
    ...(budget && { ifRevision: budget.revision }),
  };
  const submit = (event: FormEvent) => {
    event.preventDefault();
    set.mutate(request);
  };
  return (
    <form onSubmit={submit}>
      <Stack>
        <Select
          label="Of"
          data={scopes}
          value={scope}
          onChange={(value) => setScope(value ?? scope)}
          disabled={budget !== undefined}
          allowDeselect={false}
        />
        {Number(scope) !== BudgetScope.ORG && (
          <TextInput
            label="Which"
            description="Its id, or * for each that has none of its own"
            value={subjectId}
            onChange={(event) => setSubjectId(event.currentTarget.value)}
            disabled={budget !== undefined}
            required
          />
        )}
        <Select
          label="Counted"
          data={periods}
          value={period}
          onChange={(value) => setPeriod(value ?? period)}
          disabled={budget !== undefined}
          allowDeselect={false}
        />
        <NumberInput
          label="Tokens"
          description="Empty: not limited"
          value={tokens}
          onChange={setTokens}
          min={0}
          allowDecimal={false}
        />
        <NumberInput
          label="Credits"
          description="Empty: not limited"
          value={credits}
          onChange={setCredits}
          min={0}
          decimalScale={6}
        />
        {tokens === "" && credits === "" && <Text size="sm">Without limits the budget is removed.</Text>}
        {set.error && <Failure error={set.error} />}
        <Button type="submit" loading={set.isPending}>
          {tokens === "" && credits === "" ? "Remove" : "Set"}
        </Button>
        <AsCommand call={callOf(setBudget, request)} />
      </Stack>
    </form>
  );
}
