/** What the tests of the relay say often. */
import { type JsonValue, type MessageInitShape, toJson } from "@bufbuild/protobuf";
import { ValueSchema } from "@bufbuild/protobuf/wkt";
import type { Message, MessagePayload } from "../../gen/moltwire/relay/v1/message_pb.ts";
import type {
  ConverseRequestSchema,
  ConverseResponse,
  SendRequestSchema,
  SubscribeRequestSchema,
  SubscribeResponse,
} from "../../gen/moltwire/relay/v1/relay_service_pb.ts";
import { value } from "../bus-fixtures/bus.ts";
import type { Clients } from "../harness.ts";

type Fields<T> = Partial<Extract<T, { $typeName?: never }>>;
export type SendInit = Fields<MessageInitShape<typeof SendRequestSchema>>;
export type SubscribeInit = Fields<MessageInitShape<typeof SubscribeRequestSchema>>;
export type Frame = Fields<MessageInitShape<typeof ConverseRequestSchema>>;

export const json = (of: JsonValue) => ({ kind: { case: "json", value: value(of) } }) as const;
export const bytes = (of: Uint8Array, contentType = "") =>
  ({ kind: { case: "data", value: of }, contentType }) as const;
export const jsonOf = (payload: MessagePayload | undefined): JsonValue | undefined =>
  payload?.kind.case === "json" ? (toJson(ValueSchema, payload.kind.value) as JsonValue) : undefined;
export const says = (message: Message | undefined): JsonValue | undefined => jsonOf(message?.payload);

export const toAgent = (agentId: string) => ({ to: { case: "toAgentId", value: agentId } }) as const;
export const toChannel = (name: string) => ({ to: { case: "toChannel", value: name } }) as const;

/** Sends something said in JSON. */
export const tell = (by: Clients, to: SendInit, what: JsonValue, more: SendInit = {}) =>
  by.relay.send({ ...to, payload: json(what), ...more });

/** A stream that a test reads as it goes. Leaves at disposal. */
export class Listening<T> {
  readonly seen: T[] = [];
  readonly #leave = new AbortController();
  readonly over: Promise<unknown>;
  #wake = Promise.withResolvers<void>();

  constructor(open: (signal: AbortSignal) => AsyncIterable<T>) {
    this.over = (async () => {
      try {
        for await (const one of open(this.#leave.signal)) {
          this.seen.push(one);
          this.#wake.resolve();
          this.#wake = Promise.withResolvers();
        }
        return undefined;
      } catch (error) {
        return error;
      } finally {
        this.#wake.resolve();
      }
    })();
  }

  /** Waits until what was seen satisfies; fails after a minute, or when the stream ended before. */
  async until(enough: (seen: readonly T[]) => boolean, withinMs = 60_000): Promise<readonly T[]> {
    const end = Date.now() + withinMs;
    let ended = false;
    void this.over.then(() => (ended = true));
    while (!enough(this.seen)) {
      if (ended) throw new Error(`the stream ended after ${this.seen.length}: ${await this.over}`);
      if (Date.now() > end) throw new Error(`what was waited for did not come; ${this.seen.length} came`);
      await Promise.race([this.#wake.promise, this.over, new Promise((resolve) => setTimeout(resolve, 50))]);
    }
    return this.seen;
  }

  leave(): void {
    this.#leave.abort();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.leave();
    await this.over;
  }
}

export const listen = (by: Clients, request: SubscribeInit = {}): Listening<SubscribeResponse> =>
  new Listening((signal) => by.relay.subscribe(request, { signal }));

export const messagesOf = (seen: readonly SubscribeResponse[]): Message[] =>
  seen.flatMap(({ event }) => (event.case === "message" ? [event.value] : []));

/** A conversation: say frames, read answers. */
export class Talk extends Listening<ConverseResponse> {
  readonly #frames: (Frame | undefined)[];
  readonly #more: () => void;

  constructor(by: Clients, open: Extract<Frame["frame"], { case?: "open" }>["value"] = {}) {
    const frames: (Frame | undefined)[] = [{ ref: "open", frame: { case: "open", value: open } } as Frame];
    let wake = Promise.withResolvers<void>();
    async function* said() {
      for (;;) {
        while (frames.length > 0) {
          const frame = frames.shift();
          if (!frame) return;
          yield frame as MessageInitShape<typeof ConverseRequestSchema>;
        }
        await wake.promise;
        wake = Promise.withResolvers();
      }
    }
    super((signal) => by.relay.converse(said(), { signal }));
    this.#frames = frames;
    this.#more = () => wake.resolve();
  }

  say(...frames: Frame[]): void {
    this.#frames.push(...frames);
    this.#more();
  }

  /** Closes this side. */
  end(): void {
    this.#frames.push(undefined);
    this.#more();
  }

  /** The answer to a frame. */
  async answer(ref: string): Promise<ConverseResponse["event"]> {
    const seen = await this.until((all) => all.some((one) => one.ref === ref));
    return seen.find((one) => one.ref === ref)!.event;
  }

  get messages(): Message[] {
    return this.seen.flatMap(({ event }) => (event.case === "message" ? [event.value] : []));
  }
}

export const sendFrame = (ref: string, message: SendInit, idempotencyKey = ""): Frame =>
  ({ ref, frame: { case: "send", value: { idempotencyKey, message } } }) as Frame;
