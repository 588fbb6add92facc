/** A command for a method that streams: each message is a line. */
import { randomUUID } from "node:crypto";
import { createInterface } from "node:readline";
import {
  type DescField,
  type DescMessage,
  type DescMethodBiDiStreaming,
  type DescMethodServerStreaming,
  fromJson,
  getOption,
  type Message,
  type MessageShape,
  ScalarType,
  toJson,
} from "@bufbuild/protobuf";
import type { Command } from "commander";
import { access, Kind } from "../../gen/moltwire/api/v1/access_pb.ts";
import { asideOf, lineOf } from "./answer.ts";
import { run, wholeNumber, withServer } from "./command.ts";
import { tellLater } from "./comments.ts";
import { connectClients, openStream } from "./connect.ts";
import { exitCodes } from "./exit-codes.ts";
import { follow } from "./follow.ts";
import { note, print, printJson } from "./output.ts";
import { declareRequest, type RequestFields, readRequest } from "./request.ts";
import { type ConnectionOptions, readSettings, type Settings, UsageError } from "./settings.ts";

/** What a stream is: the method behind it, and what fills its request. */
export type Stream<I extends DescMessage, O extends DescMessage> = RequestFields & {
  readonly name: string;
  readonly summary: string | (() => string);
  readonly method: DescMethodServerStreaming<I, O> | DescMethodBiDiStreaming<I, O>;
};

type StreamOptions = ConnectionOptions & { readonly count?: number };

/** Adds it to its noun. A feed goes on over lost connections, after its last cursor; other streams end with them. */
export function addStream<I extends DescMessage, O extends DescMessage>(noun: Command, stream: Stream<I, O>): Command {
  const command = tellLater(noun.command(stream.name), stream.summary);
  declareRequest(command, stream.method.input, stream);
  command.option("--count <number>", "end after so many messages", wholeNumber(1, 1_000_000));
  withServer(command, stream.method);
  return command.action(run((options: StreamOptions) => perform(stream, command, options)));
}

async function perform<I extends DescMessage, O extends DescMessage>(
  stream: Stream<I, O>,
  command: Command,
  options: StreamOptions,
): Promise<number> {
  const { method } = stream;
  const settings = readSettings(options, process.env);
  const reading = { clients: connectClients(settings), orgId: options.org ?? "" };
  const request = await readRequest(method.input, stream, command, reading);
  let seen = 0;
  try {
    for await (const message of messagesOf(settings, method, request)) {
      const line = lineOf(method.output, message);
      if (line === undefined) {
        const aside = asideOf(method.output, message);
        if (aside) note(aside);
        continue;
      }
      if (options.json) printJson(toJson(method.output, message), 0);
      else print(line);
      seen += 1;
      if (seen === options.count) break;
    }
  } finally {
    // Else a terminal or a pipe that is open would keep the command.
    if (method.methodKind === "bidi_streaming") process.stdin.destroy();
  }
  return exitCodes.ok;
}

function messagesOf<I extends DescMessage, O extends DescMessage>(
  settings: Settings,
  method: DescMethodServerStreaming<I, O> | DescMethodBiDiStreaming<I, O>,
  request: MessageShape<I>,
): AsyncIterable<MessageShape<O>> {
  if (method.methodKind === "bidi_streaming") return openStream(settings, method, said(method.input, request));
  const place = placeOf(method);
  if (place) return followed(settings, method, request, place);
  const headers = getOption(method, access).kind === Kind.COMMAND ? { "idempotency-key": `cli-${randomUUID()}` } : {};
  return openStream(settings, method, one(request), { headers });
}

async function* one<T>(message: T): AsyncGenerator<T> {
  yield message;
}

/** What is said to a stream that listens: the request, if flags made one, and then each line of standard input. */
async function* said<I extends DescMessage>(schema: I, request: MessageShape<I>): AsyncGenerator<MessageShape<I>> {
  if (Object.keys(toJson(schema, request) as object).length > 0) yield request;
  for await (const line of createInterface({ input: process.stdin, terminal: false })) {
    if (line.trim() === "") continue;
    try {
      yield fromJson(schema, JSON.parse(line));
    } catch (error) {
      throw new UsageError(`standard input: ${(error as Error).message}`, `each line is a ${schema.name} as JSON`);
    }
  }
}

/** Where a feed is: the field of its messages that tells it, and that of its request after which it goes on. */
type Place = { readonly told: DescField; readonly after: DescField & { readonly fieldKind: "scalar" } };

function placeOf({ input, output }: DescMethodServerStreaming): Place | undefined {
  const after = input.fields.find(({ name }) => name.startsWith("after_"));
  const told = output.fields.find(({ name }) => after?.name === `after_${name}`);
  return told && after?.fieldKind === "scalar" ? { told, after } : undefined;
}

async function* followed<I extends DescMessage, O extends DescMessage>(
  settings: Settings,
  method: DescMethodServerStreaming<I, O>,
  request: MessageShape<I>,
  { told, after }: Place,
): AsyncGenerator<MessageShape<O>> {
  const typed = (cursor: string) => (after.scalar === ScalarType.STRING ? cursor : BigInt(cursor));
  const messages = follow(settings.url, "", async function* (cursor, signal) {
    // Where it begins is said once; after that it goes on.
    const again = cursor !== "" && { [after.localName]: typed(cursor), fromStart: false, start: 0 };
    for await (const message of openStream(settings, method, one({ ...request, ...again }), { signal })) {
      const at = (message as Message & Record<string, unknown>)[told.localName];
      yield { cursor: String(at), message };
    }
  });
  for await (const { message } of messages) yield message;
}
