/** An organisation forbids something: who asks for it is refused, the log says so, and a draft can be tried out before it is put. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampNow } from "@bufbuild/protobuf/wkt";
import { AgentService } from "../../../gen/moltwire/bus/v1/agent_service_pb.ts";
import { ContractService } from "../../../gen/moltwire/bus/v1/contract_service_pb.ts";
import { PolicyVerdict } from "../../../gen/moltwire/bus/v1/policy_pb.ts";
import { PolicyService, type TestPolicyRequestSchema } from "../../../gen/moltwire/bus/v1/policy_service_pb.ts";
import { ask, outputOf } from "../ask.ts";
import { refused, same } from "./claim.ts";
import type { Outcome, World } from "./scenario.ts";

const contractId = "payments/transfer";
const policyId = "no-transfers";
const forbid = `forbid (principal, action == Action::"invoke", resource == Contract::"${contractId}")`;
const payment = { to: "landlord", amount: 100 };

/** Lets the planner pay, forbids it, and asks what it would be with the planner spared. */
export async function policy({ admin, planner, made }: World): Promise<Outcome> {
  const { planner: agentId } = made.agentIds;
  const startTime = timestampNow();
  await admin(ContractService).registerContract({ contractId, version: "1.0.0" });
  const endpoint = { kind: { case: "echo", value: {} } } as const;
  await admin(AgentService).registerAgent({ name: "treasurer", capabilities: [contractId], endpoint });
  same("what was paid before", outputOf(await ask(planner, contractId, payment)), payment);

  const policies = admin(PolicyService);
  await policies.putPolicy({ policyId, cedarText: `${forbid};`, description: "Nobody pays by an agent." });
  const { metadata } = await refused("POLICY_DENIED", ask(planner, contractId, payment));
  same("the policy that the refusal names", metadata.policy_ids, policyId);

  const { decisions } = await policies.listDecisions({ policyId, agentId });
  same(
    "the decisions by this policy",
    decisions.map(({ traceId, answer }) => [traceId, answer?.verdict]),
    [[metadata.trace_id, PolicyVerdict.DENY]],
  );

  const draft = { puts: [{ policyId, cedarText: `${forbid} unless { principal == Agent::"${agentId}" };` }] };
  const test = (subject: Subject) => policies.testPolicy({ subject, draft });
  const question = {
    principal: { type: "Agent", id: agentId },
    action: "invoke",
    resource: { type: "Contract", id: contractId },
  };
  const { answer, currentAnswer } = await test({ case: "question", value: question });
  same("now and by the draft", [currentAnswer?.verdict, answer?.verdict], [PolicyVerdict.DENY, PolicyVerdict.ALLOW]);
  const { simulation } = await test({ case: "window", value: { startTime, action: "invoke", agentId } });
  same("decisions, and those that the draft changes", [simulation?.decisions, simulation?.changed], [2n, 1n]);
  await refused("POLICY_DENIED", ask(planner, contractId, payment));
  return {
    proof: `POLICY_DENIED by ${metadata.policy_ids}, ${decisions.length} DENY in the decision log; by TestPolicy a draft that spares the planner would change ${simulation!.changed} of ${simulation!.decisions} decisions`,
    traceId: metadata.trace_id!,
  };
}

type Subject = NonNullable<MessageInitShape<typeof TestPolicyRequestSchema>["subject"]>;
