/** Calls as bytes: what a client that is no client of ours sends and gets. */
import { type DescMethod, type JsonValue, type Message, toJson } from "@bufbuild/protobuf";

/** An answer as it came, and as it can be compared. */
export type RawAnswer = {
  readonly status: number;
  readonly headers: Headers;
  /** The body; of a stream the first message, or the end if there is none. */
  readonly text: string;
  /** Status, headers and body, with what error details hold in base64 made readable. */
  readonly readable: string;
};

/** Headers that differ from one answer to the next. */
const fleeting = new Set(["date", "x-trace-id"]);

/** Calls the method in Connect's JSON: a stream until its first message. */
export async function callRaw(
  url: string,
  method: DescMethod,
  request: Message,
  headers: Record<string, string>,
): Promise<RawAnswer> {
  const json = Buffer.from(JSON.stringify(toJson(method.input, request)));
  const isUnary = method.methodKind === "unary";
  const leave = new AbortController();
  const answer = await fetch(`${url}/${method.parent.typeName}/${method.name}`, {
    method: "POST",
    headers: {
      "content-type": isUnary ? "application/json" : "application/connect+json",
      // Or the length would depend on how well an id packs.
      "accept-encoding": "identity",
      ...headers,
    },
    body: isUnary ? json : envelope(json),
    signal: leave.signal,
  });
  const text = isUnary ? await answer.text() : await firstFrame(answer.body!);
  leave.abort();
  const kept = [...answer.headers].filter(([name]) => !fleeting.has(name));
  const readable = `${answer.status} ${JSON.stringify(kept)} ${JSON.stringify(decoded(JSON.parse(text) as JsonValue))}`;
  return { status: answer.status, headers: answer.headers, text, readable };
}

function envelope(message: Uint8Array): Buffer<ArrayBuffer> {
  const prefix = Buffer.alloc(5);
  prefix.writeUInt32BE(message.length, 1);
  return Buffer.concat([prefix, message]);
}

async function firstFrame(body: ReadableStream<Uint8Array>): Promise<string> {
  let bytes = Buffer.alloc(0);
  for await (const chunk of body) {
    bytes = Buffer.concat([bytes, chunk]);
    const end = bytes.length < 5 ? Number.POSITIVE_INFINITY : 5 + bytes.readUInt32BE(1);
    if (bytes.length >= end) return bytes.subarray(5, end).toString();
  }
  throw new Error("the stream ended without a message and without an end");
}

/** The same JSON, in which the `value` of each error detail is text and not base64 of it. */
function decoded(value: JsonValue): JsonValue {
  if (Array.isArray(value)) return value.map(decoded);
  if (typeof value !== "object" || value === null) return value;
  const isDetail = typeof value.type === "string" && typeof value.value === "string";
  return Object.fromEntries(
    Object.entries(value).map(([key, inner]) => [
      key,
      isDetail && key === "value" ? Buffer.from(String(inner), "base64").toString("latin1") : decoded(inner),
    ]),
  );
}
