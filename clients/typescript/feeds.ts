/** What happens in an organisation: its events, and the steps of its traces. */
import type { CallOptions } from "@connectrpc/connect";
import type { TraceEvent } from "../../gen/moltwire/bus/v1/trace_pb.ts";
import { type TailTracesRequestSchema, TraceService } from "../../gen/moltwire/bus/v1/trace_service_pb.ts";
import type { Event } from "../../gen/moltwire/ops/v1/event_pb.ts";
import { EventService, type WatchEventsRequestSchema } from "../../gen/moltwire/ops/v1/event_service_pb.ts";
import { type Area, areaOf, told } from "./area.ts";
import { type Connection, clientOf } from "./connection.ts";
import type { Fields } from "./payload.ts";

type EventHelpers = {
  /** The events as they are committed, over lost connections too, each with the cursor after which a later watch can go on. */
  watch(
    request?: Fields<typeof WatchEventsRequestSchema>,
    call?: CallOptions,
  ): AsyncGenerator<{ readonly cursor: string; readonly event: Event }, void>;
};

type TraceHelpers = {
  /** The steps of all traces as they are committed, over lost connections too, each with the cursor after which a later tail can go on. */
  tail(
    request?: Fields<typeof TailTracesRequestSchema>,
    call?: CallOptions,
  ): AsyncGenerator<{ readonly cursor: string; readonly step: TraceEvent }, void>;
};

export type EventArea = Area<typeof EventService, EventHelpers>;
export type TraceArea = Area<typeof TraceService, TraceHelpers>;

/**
 * The events.
 *
 * @example
 * ```ts
 * import { connect } from "@moltwire/client";
 *
 * const { events, relay } = connect({ url, apiKey });
 * await relay.send({ agentId }, "a message is an event too");
 * for await (const { event } of events.watch({ types: ["message.*"], fromStart: true })) {
 *   console.log(event.type); // message.received
 *   break;
 * }
 * ```
 */
export function eventsOf(connection: Connection): EventArea {
  const rpc = clientOf(connection, EventService);
  return areaOf<typeof EventService, EventHelpers>(rpc, {
    watch: (request = {}, call = {}) =>
      told(
        (options) => rpc.watchEvents(request, options),
        call,
        ({ cursor, item }) => (item.case === "event" ? { cursor, event: item.value } : undefined),
      ),
  });
}

/** The traces. */
export function tracesOf(connection: Connection): TraceArea {
  const rpc = clientOf(connection, TraceService);
  return areaOf<typeof TraceService, TraceHelpers>(rpc, {
    tail: (request = {}, call = {}) =>
      told(
        (options) => rpc.tailTraces(request, options),
        call,
        ({ cursor, event }) => (event.case === "traceEvent" ? { cursor, step: event.value } : undefined),
      ),
  });
}
