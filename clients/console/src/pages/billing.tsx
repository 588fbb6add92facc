import { createClient } from "@connectrpc/connect";
import { useQuery, useTransport } from "@connectrpc/connect-query";
import { Button, Card, Group, Select, SimpleGrid, Text, TextInput, Title } from "@mantine/core";
import { useState } from "react";
import { Role } from "../../../../gen/moltwire/api/v1/access_pb.ts";
import { BillingService } from "../../../../gen/moltwire/exchange/v1/billing_service_pb.ts";
import {
  AccountKind,
  type Transaction,
  TransactionKind,
  TransactionSchema,
  TransactionStep,
} from "../../../../gen/moltwire/exchange/v1/ledger_pb.ts";
import { Act } from "../parts/act.tsx";
import { useWord } from "../parts/address.ts";
import { callOf } from "../parts/command.tsx";
import { saveFile } from "../parts/export.ts";
import { Failure } from "../parts/failure.tsx";
import { WordAgent, WordChoice } from "../parts/filters.tsx";
import { type Column, List } from "../parts/list.tsx";
import { useAgentNames, useAgents } from "../parts/names.ts";
import { usePages } from "../parts/pages.ts";
import { Empty, Head } from "../parts/show.tsx";
import { agoText, choicesOf, creditsText, enumText, enumWord, microsOf, optionsText, shortId } from "../parts/text.ts";
import { useOrg, useSession } from "../session.ts";

const { getBalance, listTransactions, topUp, transferCredits } = BillingService.method;

/** Credits: who has how many, and where they came from and went to. */
export function Billing() {
  const orgId = useOrg();
  const { session } = useSession();
  const [agentId] = useWord("agent");
  const [kind] = useWord("kind");
  const request = { orgId, agentId, kind: Number(kind) as TransactionKind };
  const balance = useQuery(getBalance, { orgId, agentId });
  const transactions = usePages(listTransactions, request, (page) => page.transactions);
  const nameOf = useAgentNames();
  const { balanceMicros = 0n, reservedMicros = 0n, availableMicros = 0n } = balance.data?.balance ?? {};
  const accountOf = (accountKind: AccountKind, accountId: string): string =>
    accountKind === AccountKind.AGENT_WALLET
      ? nameOf(accountId)
      : accountKind === AccountKind.ESCROW
        ? `escrow ${shortId(accountId)}`
        : enumText(AccountKind, accountKind);
  const columns: readonly Column<Transaction>[] = [
    { name: "For", show: (one) => enumText(TransactionKind, one.kind) },
    { name: "What", wide: true, show: ({ step }) => enumText(TransactionStep, step) },
    { name: "Account", wide: true, show: (one) => accountOf(one.accountKind, one.accountId) },
    { name: "With", wide: true, show: (one) => accountOf(one.counterpartyKind, one.counterpartyAccountId) },
    { name: "Credits", right: true, show: ({ amountMicros }) => creditsText(amountMicros) },
    { name: "Set aside", wide: true, right: true, show: (one) => creditsText(one.reservedMicros) },
    { name: "Reference", wide: true, show: ({ reference }) => <div className="fit">{reference}</div> },
    { name: "Age", right: true, show: ({ time }) => agoText(time) },
  ];
  const again = [getBalance, listTransactions];
  return (
    <>
      <Head
        title="Billing"
        cli={`npx moltwire billing transactions${optionsText({ agent: agentId, kind: kind && enumWord(TransactionKind, request.kind) })}`}
        call={callOf(listTransactions, request)}
        onRefresh={() => {
          void balance.refetch();
          transactions.refetch();
        }}
      >
        <WordAgent none="The organisation's wallet" />
        <WordChoice word="kind" label="For what" choices={choicesOf(TransactionKind, "For anything")} />
      </Head>
      {balance.error && <Failure error={balance.error} />}
      <SimpleGrid cols={{ base: 1, xs: 3 }} mb="md">
        <Amount title="Holds" micros={balanceMicros} />
        <Amount title="Of that set aside" micros={reservedMicros} />
        <Amount title="Can pay" micros={availableMicros} />
      </SimpleGrid>
      <Group mb="lg">
        <Transfer again={again} />
        {session.role === Role.OPERATOR && <TopUp again={again} />}
        <Statement agentId={agentId} kind={request.kind} />
      </Group>
      <List
        label="Transactions"
        {...transactions.list}
        schema={TransactionSchema}
        columns={columns}
        keyOf={(one) => `${one.transferId} ${one.accountId} ${one.step}`}
        empty={
          <Empty title="No credits have moved" command={`npx moltwire billing top-up 100 --org ${orgId}`}>
            Credits come from the operator, and move when work is sold or bought. To give this organisation some:
          </Empty>
        }
      />
    </>
  );
}

const Amount = ({ title, micros }: { title: string; micros: bigint }) => (
  <Card withBorder padding="sm">
    <Text size="sm" c="dimmed">
      {title}
    </Text>
    <Title order={2} size="h3">
      {creditsText(micros)}
    </Title>
  </Card>
);

type Again = Parameters<typeof Act>[0]["again"];

const AmountField = ({ typed, onType }: { typed: string; onType: (typed: string) => void }) => (
  <TextInput
    label="Credits"
    inputMode="decimal"
    value={typed}
    error={typed !== "" && microsOf(typed) === undefined ? "an amount, such as 12.5" : undefined}
    onChange={({ currentTarget }) => onType(currentTarget.value)}
    data-autofocus
  />
);

function Transfer({ again }: { again: Again }) {
  const orgId = useOrg();
  const agents = useAgents();
  const [typed, type] = useState("");
  const [fromAgentId, setFrom] = useState("");
  const [toAgentId, setTo] = useState("");
  const amountMicros = microsOf(typed);
  const wallets = [
    { value: "", label: "The organisation" },
    ...agents.map(({ agentId, name }) => ({ value: agentId, label: name })),
  ];
  const isWhole = amountMicros !== undefined && amountMicros > 0n && fromAgentId !== toAgentId;
  return (
    <Act
      label="Transfer"
      title="Move credits"
      about="Between the wallets of this organisation and its agents."
      method={transferCredits}
      request={isWhole ? { orgId, fromAgentId, toAgentId, amountMicros } : undefined}
      cli={`npx moltwire billing transfer ${typed}${optionsText({ from: fromAgentId, to: toAgentId })}`}
      again={again}
      onDone={() => type("")}
    >
      <AmountField typed={typed} onType={type} />
      <Select
        label="From"
        searchable
        data={wallets}
        value={fromAgentId}
        onChange={(next) => setFrom(next ?? "")}
        allowDeselect={false}
      />
      <Select
        label="To"
        searchable
        data={wallets}
        value={toAgentId}
        onChange={(next) => setTo(next ?? "")}
        allowDeselect={false}
      />
    </Act>
  );
}

function TopUp({ again }: { again: Again }) {
  const orgId = useOrg();
  const [typed, type] = useState("");
  const [reference, setReference] = useState("");
  const amountMicros = microsOf(typed);
  return (
    <Act
      label="Top up"
      title="Give this organisation credits"
      about="For what it has paid you elsewhere. Credits are made; only a reversal takes them back."
      method={topUp}
      request={amountMicros ? { orgId, amountMicros, reference } : undefined}
      cli={`npx moltwire billing top-up ${typed} --org ${orgId}${optionsText({ reference })}`}
      again={again}
      onDone={() => type("")}
    >
      <AmountField typed={typed} onType={type} />
      <TextInput
        label="Reference"
        description="Such as the number of an invoice"
        value={reference}
        onChange={({ currentTarget }) => setReference(currentTarget.value)}
        maxLength={128}
      />
    </Act>
  );
}

/** All lines that fit the filters, as the server writes them. */
function Statement({ agentId, kind }: { agentId: string; kind: TransactionKind }) {
  const orgId = useOrg();
  const transport = useTransport();
  const [state, setState] = useState<{ isSaving: boolean; error?: unknown }>({ isSaving: false });
  const save = async () => {
    setState({ isSaving: true });
    try {
      const parts: string[] = [];
      for await (const { csv } of createClient(BillingService, transport).exportTransactions({ orgId, agentId, kind }))
        parts.push(csv);
      saveFile(parts, "statement.csv", "text/csv");
      setState({ isSaving: false });
    } catch (error) {
      setState({ isSaving: false, error });
    }
  };
  return (
    <>
      <Button variant="default" onClick={() => void save()} loading={state.isSaving}>
        Save the whole statement
      </Button>
      {state.error !== undefined && <Failure error={state.error} />}
    </>
  );
}
