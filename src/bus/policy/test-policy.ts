/** TestPolicy: decides without doing. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { PolicyQuestion } from "../../../gen/moltwire/bus/v1/policy_pb.ts";
import type { TestPolicyRequest, TestPolicyResponseSchema } from "../../../gen/moltwire/bus/v1/policy_service_pb.ts";
import type { App } from "../../app.ts";
import { Fault, notFound } from "../../errors.ts";
import type { Caller } from "../../rpc/caller.ts";
import type { Query } from "../../rpc/query.ts";
import { seesWholeOrg } from "../../rpc/scope.ts";
import { toPolicyAnswer } from "./answer.ts";
import { readContext } from "./context.ts";
import { draftSet } from "./draft.ts";
import type { Question } from "./policies.ts";
import { findEntity } from "./resolve-entity.ts";
import { type Running, simulate } from "./simulate.ts";
import type { ActionShape, Vocabulary } from "./vocabulary.ts";

export async function testPolicy(
  app: App,
  req: TestPolicyRequest,
  asked: Query,
  running: Running,
  signal: AbortSignal,
): Promise<MessageInitShape<typeof TestPolicyResponseSchema>> {
  const { db, caller, orgId } = asked;
  const { subject } = req;
  checkCaller(caller, req);
  const current = await app.policies.current(db, orgId);
  const draft = req.draft && (await draftSet(app, db, orgId, current, req.draft));
  const policySetRevision = BigInt(current.revision);
  if (subject.case === "window")
    return {
      simulation: await simulate(app, subject.value, asked, { current, draft }, running, signal),
      policySetRevision,
    };
  const question = await toQuestion(app.policies.vocabulary, subject.value as PolicyQuestion, asked);
  const answerOf = (set: typeof current) => toPolicyAnswer(app.policies.answer(set, question));
  return {
    answer: answerOf(draft ?? current),
    ...(draft && { currentAnswer: answerOf(current) }),
    policySetRevision,
  };
}

/** ROLE_REQUIRED when an agent asks for another, with a draft, or about a window. */
function checkCaller(caller: Caller, { subject, draft, orgId }: TestPolicyRequest): void {
  if (seesWholeOrg(caller)) return;
  const principal = subject.case === "question" ? subject.value.principal : undefined;
  const itself =
    principal?.type === "Agent" && principal.id === caller.agentId && ["", caller.orgId].includes(principal.orgId);
  if (itself && !draft) return;
  const message = "an agent may ask only with itself as principal, and neither with a draft nor about a window";
  throw new Fault("ROLE_REQUIRED", message, { required_role: "ORG", ...(orgId && { org_id: orgId }) });
}

async function toQuestion(vocabulary: Vocabulary, asked: PolicyQuestion, { db, orgId, now }: Query): Promise<Question> {
  const { action, principal: who, resource: what } = asked;
  const shape = shapeOf(vocabulary, action, who!.type, what!.type);
  const given = asked.context ?? {};
  const version = typeof given.contract_version === "string" ? given.contract_version : "";
  const find = async (field: "principal" | "resource") => {
    const { type, id, orgId: of } = asked[field]!;
    const found = await findEntity(db, orgId, { type, id, orgId: of || orgId, version });
    if (!found) throw notFound(type.toLowerCase(), id);
    return found;
  };
  const [{ entity: principal }, { entity: resource, related }] = [await find("principal"), await find("resource")];
  const known = Object.hasOwn(shape.context, "contract_version") && resource.type === "Contract";
  const attributes = known ? resource.json().attrs : {};
  const whole = known ? { ...given, contract_version: attributes.version as string } : given;
  return { principal, action, resource, related, context: readContext(whole, action, shape, now, "question.context") };
}

/** INVALID_POLICY unless there is the action and these types go with it. */
export function shapeOf(vocabulary: Vocabulary, action: string, principal: string, resource: string): ActionShape {
  const shape = vocabulary.actions.get(action);
  const fault = (field: string, message: string) =>
    new Fault("INVALID_POLICY", `${field}: ${message}`, { field }, { fields: [{ field, description: message }] });
  if (!shape)
    throw fault(
      "question.action",
      `there is no action ${action}; there are: ${[...vocabulary.actions.keys()].toSorted().join(", ")}`,
    );
  if (!shape.principals.includes(principal))
    throw fault("question.principal.type", `${action} is done by: ${shape.principals.join(", ")}`);
  if (!shape.resources.includes(resource))
    throw fault("question.resource.type", `${action} is done to: ${shape.resources.join(", ")}`);
  return shape;
}
