/** What the tests of webhooks say often. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import { type Delivery, DeliveryState } from "../../gen/moltwire/webhook/v1/delivery_pb.ts";
import type { Webhook } from "../../gen/moltwire/webhook/v1/webhook_pb.ts";
import type { CreateWebhookRequestSchema } from "../../gen/moltwire/webhook/v1/webhook_service_pb.ts";
import { contract, echoEndpoint, nameOf, value } from "../bus-fixtures/bus.ts";
import { type Clients, eventually, type Org, unique } from "../harness.ts";

type Fields<T> = Partial<Extract<T, { $typeName?: never }>>;

/** Makes a webhook for all events, unless told otherwise; gives it with its secret. */
export async function hook(
  by: Clients,
  url: string,
  init: Fields<MessageInitShape<typeof CreateWebhookRequestSchema>> = {},
): Promise<{ readonly webhookId: string; readonly secret: string; readonly webhook: Webhook }> {
  const { webhook, secret } = await by.webhooks.createWebhook({ url, eventTypes: ["*"], ...init });
  return { webhookId: webhook!.webhookId, secret, webhook: webhook! };
}

/** A contract whose agent answers at once: to submit a task of it makes one event, `task.completed`, of whoever submits. */
export async function eventSource(org: Org): Promise<(by: Clients) => Promise<string>> {
  const capability = unique("echo");
  await org.agent({ capabilities: [capability], endpoint: echoEndpoint });
  const contractId = await contract(org, { contractId: unique("source"), capability });
  return async (by) => (await by.bus.submitTask({ contractId, input: value({ n: 1 }) })).task!.taskId;
}

export const stateOf = (delivery: Delivery | undefined): string => nameOf(DeliveryState, delivery?.state);

/** The deliveries of a webhook once they are so. */
export const deliveriesWhen = (
  by: Clients,
  webhookId: string,
  are: (deliveries: readonly Delivery[]) => boolean,
): Promise<readonly Delivery[]> =>
  eventually(async () => {
    const { deliveries } = await by.webhooks.listDeliveries({ webhookId });
    return are(deliveries) && deliveries;
  });
