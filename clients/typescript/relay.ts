/** Messages between agents, and channels. */
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import type { CallOptions } from "@connectrpc/connect";
import type { Message } from "../../gen/moltwire/relay/v1/message_pb.ts";
import {
  RelayService,
  type SendRequestSchema,
  type SendResponse,
  type SubscribeRequestSchema,
} from "../../gen/moltwire/relay/v1/relay_service_pb.ts";
import { type Area, areaOf, told } from "./area.ts";
import { type Connection, clientOf } from "./connection.ts";
import { type Content, type Fields, payloadOf } from "./payload.ts";

/** To whom: an agent's inbox, by the agent's id, or a channel, by its name. */
export type Recipient = { readonly agentId: string } | { readonly channel: string };

/** The other fields of SendRequest. */
export type SendOptions = Omit<Fields<typeof SendRequestSchema>, "to" | "payload" | "ttl"> & {
  /** From 1,000 to 365 days. Default: as long as the log keeps it. */
  readonly ttlMs?: number;
  /** What bytes are, such as `image/png`. */
  readonly contentType?: string;
};

/** How a subscription is called, and who hears of what it cannot give. */
export type SubscribeOptions = CallOptions & {
  /**
   * Called before the first message when the inbox has let go of messages that were not read, with the sequence of the newest of them; also at the next start, until
   * `markRead` is called through it. Default: a warning on the console.
   */
  readonly onUnreadGone?: (sequence: bigint) => void;
};

const warn = (sequence: bigint): void =>
  console.warn(`moltwire: messages that were not read are no longer kept, the newest of them ${sequence}`);

type Helpers = {
  /** Sends a message. */
  send(to: Recipient, payload: Content, options?: SendOptions, call?: CallOptions): Promise<SendResponse>;
  /**
   * The messages of the inbox, or of a channel, as they come, over lost connections too. Each has its sequence, after which a later subscription can go on
   * (`afterSequence`). What a message says: `contentOf(message.payload)`.
   */
  subscribe(request?: Fields<typeof SubscribeRequestSchema>, call?: SubscribeOptions): AsyncGenerator<Message, void>;
};

export type RelayArea = Area<typeof RelayService, Helpers>;

/**
 * The relay.
 *
 * @example
 * ```ts
 * import { connect, contentOf } from "@moltwire/client";
 *
 * const { relay } = connect({ url, apiKey });
 * await relay.send({ agentId }, { hello: "myself" });
 * for await (const { sequence, payload } of relay.subscribe({ afterSequence: 0n })) {
 *   console.log(sequence, contentOf(payload)); // 1n { hello: 'myself' }
 *   break;
 * }
 * ```
 */
export function relayOf(connection: Connection): RelayArea {
  const rpc = clientOf(connection, RelayService);
  return areaOf<typeof RelayService, Helpers>(rpc, {
    send(to, payload, { ttlMs, contentType, ...more } = {}, call) {
      const address =
        "channel" in to
          ? ({ case: "toChannel", value: to.channel } as const)
          : ({ case: "toAgentId", value: to.agentId } as const);
      const ttl = ttlMs === undefined ? {} : { ttl: durationFromMs(ttlMs) };
      return rpc.send({ ...more, ...ttl, to: address, payload: payloadOf(payload, contentType) }, call);
    },
    subscribe: (request = {}, { onUnreadGone = warn, ...call } = {}) =>
      told(
        (options) => rpc.subscribe(request, options),
        call,
        ({ event, unreadGoneSequence }) => {
          if (unreadGoneSequence > 0n) onUnreadGone(unreadGoneSequence);
          return event.case === "message" ? event.value : undefined;
        },
      ),
  });
}
