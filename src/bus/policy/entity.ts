/** Things as policies see them. */
import { TrustTier } from "../../../gen/moltwire/bus/v1/agent_pb.ts";
import type { AgentRow } from "../agent-store.ts";
import type { ContractRow } from "../contract-store.ts";
import type { CedarValueJson, EntityJson, TypeAndId } from "./cedar.ts";

/** A thing with all that policies can read of it. */
export type Entity = {
  readonly type: string;
  /** Its id or name as people write it, and the organisation it belongs to. */
  readonly id: string;
  readonly orgId: string;
  /** Its name in Cedar, which differs from `id` where a name is another organisation's. */
  readonly uid: TypeAndId;
  /** Tells everything that its attributes say: two entities with one key are the same to every policy. */
  readonly key: string;
  /** As Cedar takes it; built only when something has to be evaluated. */
  readonly json: () => EntityJson;
  /** An agent of one of the two outer tiers, EXTERNAL_PARTNER and PUBLIC_VENDOR: whatever is decided on it is kept. */
  readonly outer?: boolean;
};

/** The names of tiers in policies. */
const tierNames = ["INTERNAL_TRUSTED", "INTERNAL_RESTRICTED", "EXTERNAL_PARTNER", "PUBLIC_VENDOR"];
const tier = (rank: number): CedarValueJson => ref("Tier", tierNames[rank - 1]!);

const ref = (type: string, id: string): CedarValueJson => ({ __entity: { type, id } });
const orgUid = (id: string): TypeAndId => ({ type: "Org", id });

/** The Cedar name of something that has a name of its organisation's choosing, for the organisation that decides. */
const named = (type: string, name: string, orgId: string, decidingOrgId: string): TypeAndId => ({
  type,
  id: orgId === decidingOrgId ? name : `${orgId}/${name}`,
});

/** An organisation: an administrator that acts for no agent. */
export const orgEntity = (orgId: string): Entity => ({
  type: "Org",
  id: orgId,
  orgId,
  uid: orgUid(orgId),
  key: JSON.stringify(["Org", orgId]),
  json: () => ({ uid: orgUid(orgId), attrs: { org: ref("Org", orgId) }, parents: [] }),
});

/** What policies read of an agent. */
export type AgentFacts = Pick<
  AgentRow,
  "org_id" | "agent_id" | "name" | "trust_tier" | "capabilities" | "allowed_tools" | "disabled"
>;

/** An agent as another organisation sees it: an EXTERNAL_PARTNER of whose name, tools and capabilities it knows nothing. */
export const asForeigner = ({ org_id, agent_id }: Pick<AgentFacts, "org_id" | "agent_id">): AgentFacts => ({
  org_id,
  agent_id,
  name: agent_id,
  trust_tier: TrustTier.EXTERNAL_PARTNER,
  capabilities: "[]",
  allowed_tools: "[]",
  disabled: 0,
});

export const agentEntity = (row: AgentFacts): Entity => {
  const uid = { type: "Agent", id: row.agent_id };
  return {
    type: "Agent",
    id: row.agent_id,
    orgId: row.org_id,
    uid,
    outer: row.trust_tier >= TrustTier.EXTERNAL_PARTNER,
    key: JSON.stringify([
      "Agent",
      row.org_id,
      row.agent_id,
      row.name,
      row.trust_tier,
      row.capabilities,
      row.allowed_tools,
      row.disabled,
    ]),
    json: () => ({
      uid,
      attrs: {
        org: ref("Org", row.org_id),
        name: row.name,
        tier: tier(row.trust_tier),
        rank: row.trust_tier,
        capabilities: JSON.parse(row.capabilities) as string[],
        tools: (JSON.parse(row.allowed_tools) as string[]).map((tool) => ref("Tool", tool)),
        disabled: row.disabled !== 0,
      },
      parents: [orgUid(row.org_id)],
    }),
  };
};

/** What policies read of a contract. */
export type ContractFacts = Pick<
  ContractRow,
  | "org_id"
  | "contract_id"
  | "version"
  | "capability"
  | "security_class"
  | "required_tools"
  | "approval_required"
  | "partner_agent_ids"
>;

/** A contract as another organisation sees it, which is not told how it is done nor whom else it names. */
export const asForeignContract = <Contract extends ContractFacts>(row: Contract): Contract => ({
  ...row,
  partner_agent_ids: "[]",
  required_tools: "[]",
  security_class: TrustTier.PUBLIC_VENDOR,
  approval_required: 0,
});

export const contractEntity = (row: ContractFacts, decidingOrgId: string = row.org_id): Entity => {
  const uid = named("Contract", row.contract_id, row.org_id, decidingOrgId);
  return {
    type: "Contract",
    id: row.contract_id,
    orgId: row.org_id,
    uid,
    key: JSON.stringify([
      "Contract",
      uid.id,
      row.org_id,
      row.version,
      row.capability,
      row.security_class,
      row.required_tools,
      row.approval_required,
      row.partner_agent_ids,
    ]),
    json: () => ({
      uid,
      attrs: {
        org: ref("Org", row.org_id),
        version: row.version,
        capability: row.capability,
        security_class: tier(row.security_class),
        security_rank: row.security_class,
        tools: (JSON.parse(row.required_tools) as string[]).map((tool) => ref("Tool", tool)),
        approval_required: row.approval_required !== 0,
        partners: (JSON.parse(row.partner_agent_ids) as string[]).map((agentId) => ref("Agent", agentId)),
      },
      parents: [orgUid(row.org_id)],
    }),
  };
};

/** A tool, which has nothing but its name. */
export const toolEntity = (name: string, orgId: string, decidingOrgId: string = orgId): Entity => {
  const uid = named("Tool", name, orgId, decidingOrgId);
  return {
    type: "Tool",
    id: name,
    orgId,
    uid,
    key: JSON.stringify(["Tool", uid.id, orgId]),
    json: () => ({ uid, attrs: { org: ref("Org", orgId) }, parents: [orgUid(orgId)] }),
  };
};

/**
 * Something of an area's own that a type of the schema stands for, such as a queue: its attributes are those of the schema but for `org`. Policies may go on
 * from an attribute to what it names (`resource.requester.tier`): whoever asks has to give those entities along.
 */
export const ownedEntity = (
  type: "Namespace" | "Channel" | "Queue" | "Schedule" | "Approval" | "Grant" | "MarketCategory",
  name: string,
  orgId: string,
  attributes: Readonly<Record<string, CedarValueJson>>,
  decidingOrgId: string = orgId,
): Entity => {
  const uid = named(type, name, orgId, decidingOrgId);
  return {
    type,
    id: name,
    orgId,
    uid,
    key: JSON.stringify([type, uid.id, orgId, attributes]),
    json: () => ({ uid, attrs: { ...attributes, org: ref("Org", orgId) }, parents: [orgUid(orgId)] }),
  };
};

/** The value of an attribute that names an entity. */
export const entityRef = ref;
