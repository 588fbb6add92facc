/** `moltwire org`: the organisations of a server. */
import type { Organization } from "../../gen/moltwire/federation/v1/organization_pb.ts";
import { OrganizationService } from "../../gen/moltwire/federation/v1/organization_service_pb.ts";
import { addCall } from "./call.ts";
import { addNoun, type Noun } from "./command.ts";
import { type Field, json, number } from "./field.ts";
import { addList } from "./list.ts";
import { paint, plain } from "./output.ts";
import { age, at, type Column, jsonText, renderFacts } from "./table.ts";

const { createOrganization, getOrganization, listOrganizations, updateOrganization } = OrganizationService.method;

const which: Field = { name: "orgId", as: "[organisation]", help: "its id (default: the key's own)" };
const properties: readonly Field[] = [
  { name: "displayName", as: "--display-name <text>", help: "its name for people" },
  { name: "metadata", as: "--metadata <json>", help: "an object of your own: JSON, @file or -", read: json },
];

/** Adds the commands. */
export const org: Noun = (program) => {
  const noun = addNoun(
    program,
    "org",
    "organisations: nothing crosses from one to another but under a grant",
  ).addHelpText(
    "after",
    "\nNone is deleted, so that its name and its traces stay its own: `org update --disable` refuses its keys, and with\nencryption `vault drop` then makes what it has stored unreadable for ever.",
  );
  addCall(noun, {
    name: "create",
    summary: "add an organisation; for the operator. `moltwire key create --org` makes its first key",
    example: "moltwire org create acme --display-name 'Acme Ltd'",
    method: createOrganization,
    fields: [{ name: "name", as: "[name]", help: "lower-case letters, digits and -", required: true }, ...properties],
    from: true,
    show: (response) => describe(response.organization!),
  });
  addList(noun, {
    summary: "list organisations, oldest first: all to the operator, their own to the others",
    method: listOrganizations,
    rows: ({ organizations }) => organizations,
    columns,
    things: "organisations",
    first: "moltwire org create NAME",
  });
  addCall(noun, {
    name: "get",
    summary: "show an organisation",
    method: getOrganization,
    fields: [which],
    show: (response) => describe(response.organization!),
  });
  addCall(noun, {
    name: "update",
    summary: "change an organisation",
    example: "moltwire org update --display-name 'Acme Limited'",
    method: updateOrganization,
    fields: [
      which,
      {
        name: "ifRevision",
        as: "--if-revision <number>",
        help: "only if nobody has changed it since it was at this revision",
        read: number,
      },
    ],
    change: [
      { name: "name", as: "--name <name>", help: "its new name" },
      ...properties,
      { name: "disabled", as: "--disable", help: "refuse its keys; for the operator" },
      { name: "disabled", as: "--enable", help: "take its keys again", value: false },
    ],
    from: true,
    show: (response) => describe(response.organization!),
  });
};

const columns: readonly Column<Organization>[] = [
  { title: "ORGANISATION", cell: ({ orgId }) => orgId },
  { title: "NAME", cell: ({ name }) => name },
  { title: "STATE", cell: ({ disabled }) => (disabled ? "disabled" : "enabled"), colour: stateColour },
  { title: "AGE", cell: ({ createTime }) => age(createTime), right: true },
  { title: "FOR PEOPLE", cell: ({ displayName }) => displayName, cut: true },
];

function describe(organization: Organization): string[] {
  const state = paint(stateColour(organization), organization.disabled ? "disabled" : "enabled");
  return renderFacts(`${paint("bold", plain(organization.name))}  ${organization.orgId}  ${state}`, [
    ["for people", organization.displayName],
    ["metadata", jsonText(organization.metadata)],
    ["created", at(organization.createTime)],
    ["revision", organization.revision > 1n ? `${organization.revision}, of ${at(organization.updateTime)}` : ""],
  ]);
}

function stateColour({ disabled }: Organization) {
  return disabled ? "yellow" : "green";
}
