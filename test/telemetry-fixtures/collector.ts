/** An OTLP/HTTP collector: a node:http server that decodes what it is sent, by the letter of opentelemetry/proto/trace/v1/trace.proto. */
import { once } from "node:events";
import { createServer, type IncomingHttpHeaders } from "node:http";
import type { AddressInfo } from "node:net";
import { BinaryReader, WireType } from "@bufbuild/protobuf/wire";

export type ReceivedSpan = {
  readonly traceId: string;
  readonly spanId: string;
  readonly parentSpanId: string;
  readonly name: string;
  /** SpanKind: 1 internal, 2 server, 3 client. */
  readonly kind: number;
  readonly startMs: number;
  readonly endMs: number;
  readonly attributes: Record<string, string | number>;
  /** StatusCode: 0 unset, 2 error. */
  readonly status: number;
};

/** One request, as it came. */
export type Received = {
  readonly path: string;
  readonly headers: IncomingHttpHeaders;
  readonly body: Buffer;
  readonly resource: Record<string, string | number>;
  readonly spans: readonly ReceivedSpan[];
};

/** What it answers: a status, with headers and a body where wanted; undefined: nothing at all. */
export type Reply = { readonly status: number; readonly headers?: Record<string, string>; readonly body?: Uint8Array };

export type Collector = AsyncDisposable & {
  readonly url: string;
  readonly requests: readonly Received[];
  /** Of all requests that were taken. */
  readonly spans: () => readonly ReceivedSpan[];
  /** What it does with the requests to come. */
  reply: (request: Received) => Reply | undefined;
};

export async function collector(): Promise<Collector> {
  const requests: Received[] = [];
  const taken: ReceivedSpan[] = [];
  const server = createServer(async (request, response) => {
    const body = Buffer.concat(await request.toArray());
    const received = { path: request.url ?? "", headers: request.headers, body, ...decode(body) };
    requests.push(received);
    const reply = made.reply(received);
    if (!reply) return;
    if (reply.status < 300) taken.push(...received.spans);
    response.writeHead(reply.status, reply.headers).end(reply.body);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const made: Collector = {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    requests,
    spans: () => taken,
    reply: () => ({ status: 200, headers: { "content-type": "application/x-protobuf" } }),
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      server.close();
      await once(server, "close");
    },
  };
  return made;
}

/** An answer by which a collector takes a request and yet not all of its spans: ExportTraceServiceResponse.partial_success.rejected_spans. */
export const partialSuccess = (rejected: number): Reply => ({
  status: 200,
  headers: { "content-type": "application/x-protobuf" },
  body: Buffer.from([0x0a, 2, 0x08, rejected]),
});

type Fields = Map<number, (bigint | number | Uint8Array)[]>;

function fieldsOf(bytes: Uint8Array): Fields {
  const reader = new BinaryReader(bytes);
  const fields: Fields = new Map();
  while (reader.pos < reader.len) {
    const [number, type] = reader.tag();
    const value = read(reader, type);
    fields.set(number, [...(fields.get(number) ?? []), value]);
  }
  return fields;
}

function read(reader: BinaryReader, type: WireType): bigint | number | Uint8Array {
  if (type === WireType.Varint) return Number(reader.int64());
  if (type === WireType.Bit64) return BigInt(reader.fixed64());
  if (type === WireType.Bit32) return reader.fixed32();
  if (type === WireType.LengthDelimited) return reader.bytes();
  throw new Error(`a span has no field of wire type ${type}`);
}

const all = (fields: Fields, number: number): Uint8Array[] => (fields.get(number) ?? []) as Uint8Array[];
const bytes = (fields: Fields, number: number): Uint8Array => all(fields, number)[0] ?? new Uint8Array();
const hex = (fields: Fields, number: number): string => Buffer.from(bytes(fields, number)).toString("hex");
const textOf = (fields: Fields, number: number): string => Buffer.from(bytes(fields, number)).toString();
const number = (fields: Fields, at: number): number => Number(fields.get(at)?.[0] ?? 0);

function decode(body: Uint8Array): Pick<Received, "resource" | "spans"> {
  const ofResource = all(fieldsOf(body), 1).map(fieldsOf);
  const scopes = ofResource.flatMap((each) => all(each, 2)).map(fieldsOf);
  return {
    resource: attributesOf(fieldsOf(bytes(ofResource[0]!, 1)), 1),
    spans: scopes
      .flatMap((scope) => all(scope, 2))
      .map(fieldsOf)
      .map(toSpan),
  };
}

const toSpan = (fields: Fields): ReceivedSpan => ({
  traceId: hex(fields, 1),
  spanId: hex(fields, 2),
  parentSpanId: hex(fields, 4),
  name: textOf(fields, 5),
  kind: number(fields, 6),
  startMs: number(fields, 7) / 1e6,
  endMs: number(fields, 8) / 1e6,
  attributes: attributesOf(fields, 9),
  status: number(fieldsOf(bytes(fields, 15)), 3),
});

function attributesOf(fields: Fields, at: number): Record<string, string | number> {
  const entries = all(fields, at).map((each): [string, string | number] => {
    const pair = fieldsOf(each);
    const value = fieldsOf(bytes(pair, 2));
    return [textOf(pair, 1), value.has(1) ? textOf(value, 1) : number(value, 3)];
  });
  return Object.fromEntries(entries);
}
