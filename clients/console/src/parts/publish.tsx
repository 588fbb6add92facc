import { fromJson, type JsonValue } from "@bufbuild/protobuf";
import { ValueSchema } from "@bufbuild/protobuf/wkt";
import { useQuery } from "@connectrpc/connect-query";
import { Select, Textarea, TextInput } from "@mantine/core";
import { useState } from "react";
import { ContractService } from "../../../../gen/moltwire/bus/v1/contract_service_pb.ts";
import { CatalogService } from "../../../../gen/moltwire/exchange/v1/catalog_service_pb.ts";
import { useOrg } from "../session.ts";
import { Act } from "./act.tsx";
import { microsOf } from "./text.ts";

const { publishListing, searchListings, listCategories } = CatalogService.method;

/** JSON that was typed: nothing of nothing, undefined while it is none. */
export function typedJson(text: string): { readonly value: JsonValue | undefined } | undefined {
  if (text.trim() === "") return { value: undefined };
  try {
    return { value: JSON.parse(text) as JsonValue };
  } catch {
    return undefined;
  }
}

/** Offers the work under a contract of the organisation to all others. */
export function Publish({ onDone }: { onDone: (listingId: string) => void }) {
  const orgId = useOrg();
  const [title, setTitle] = useState("");
  const [description, setDescription] = useState("");
  const [category, setCategory] = useState("");
  const [contractId, setContract] = useState("");
  const [price, setPrice] = useState("");
  const [example, setExample] = useState("");
  const contracts = useQuery(ContractService.method.listContracts, { orgId, pageSize: 250 });
  const choices = [...new Set((contracts.data?.contracts ?? []).map((one) => one.contractId))];
  const requestMicros = microsOf(price);
  const exampleInput = typedJson(example);
  const isCategory = /^[a-z0-9][a-z0-9-]{0,47}$/.test(category);
  const isWhole = title.trim() !== "" && isCategory && contractId !== "" && requestMicros && exampleInput;
  const offer = isWhole && {
    ...{ title, description, category, contractId, pricing: { requestMicros } },
    ...(exampleInput.value !== undefined && { exampleInput: fromJson(ValueSchema, exampleInput.value) }),
  };
  const told = { title, description, category, contractId, pricing: { requestMicros: String(requestMicros) } };
  return (
    <Act
      label="Publish"
      size="compact-sm"
      tone="main"
      title="Offer work to others"
      about="Everybody reads it, and whoever pays the price can have it done."
      method={publishListing}
      request={offer ? { orgId, offer } : undefined}
      cli={`npx moltwire listing publish --offer '${JSON.stringify(told).replaceAll("'", "'\\''")}'`}
      again={[searchListings, listCategories]}
      onDone={({ listing }) => onDone(listing?.listingId ?? "")}
    >
      <TextInput
        label="Title"
        value={title}
        onChange={({ currentTarget }) => setTitle(currentTarget.value)}
        maxLength={128}
        data-autofocus
      />
      <Textarea
        label="What it does"
        value={description}
        onChange={({ currentTarget }) => setDescription(currentTarget.value)}
        maxLength={4_096}
        autosize
        minRows={2}
        maxRows={8}
      />
      <Select
        label="Contract"
        description="Requests run under its latest version"
        searchable
        data={choices}
        value={contractId || null}
        onChange={(next) => setContract(next ?? "")}
        nothingFoundMessage="No such contract"
      />
      <TextInput
        label="Category"
        description="Lower-case letters, digits and hyphens"
        value={category}
        error={category !== "" && !isCategory ? "such as language-tools" : undefined}
        onChange={({ currentTarget }) => setCategory(currentTarget.value)}
        maxLength={48}
      />
      <TextInput
        label="Credits for a request"
        inputMode="decimal"
        value={price}
        error={price !== "" && requestMicros === undefined ? "an amount, such as 12.5" : undefined}
        onChange={({ currentTarget }) => setPrice(currentTarget.value)}
      />
      <Textarea
        label="An example of an input, in JSON"
        value={example}
        error={exampleInput ? undefined : "this is no JSON"}
        onChange={({ currentTarget }) => setExample(currentTarget.value)}
        autosize
        minRows={2}
        maxRows={8}
        classNames={{ input: "mono" }}
      />
    </Act>
  );
}
