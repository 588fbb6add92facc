/** A command that calls one method once. */

import { randomUUID } from "node:crypto";
import type { DescMessage, DescMethodUnary, MessageShape } from "@bufbuild/protobuf";
import { getOption, toJson } from "@bufbuild/protobuf";
import type { Command } from "commander";
import { access, Kind } from "../../gen/moltwire/api/v1/access_pb.ts";
import { printAgain, type WatchOptions, withWatch } from "./again.ts";
import { run, withServer } from "./command.ts";
import { tellLater, withExample } from "./comments.ts";
import { callOnce, connectClients } from "./connect.ts";
import { exitCodes } from "./exit-codes.ts";
import { safeJson } from "./output.ts";
import { explain, report } from "./problem.ts";
import { declareRequest, type RequestFields, readRequest } from "./request.ts";
import { type ConnectionOptions, readSettings } from "./settings.ts";

/** What a command is: the method behind it, what fills its request, and how its answer is shown. */
export type Call<I extends DescMessage, O extends DescMessage> = RequestFields & {
  readonly name: string;
  readonly summary: string | (() => string);
  /** A line to copy, shown by --help. */
  readonly example?: string;
  readonly method: DescMethodUnary<I, O>;
  /** The lines for people; --json prints the response instead. */
  readonly show: (response: MessageShape<O>) => readonly string[];
  /** Default: 0. */
  readonly exitCode?: (response: MessageShape<O>) => number;
};

type CallOptions = ConnectionOptions & WatchOptions & { readonly idempotencyKey?: string };

/** Adds the command to its noun. */
export function addCall<I extends DescMessage, O extends DescMessage>(noun: Command, call: Call<I, O>): Command {
  const command = tellLater(noun.command(call.name), call.summary);
  const { kind } = getOption(call.method, access);
  const changes = kind === Kind.COMMAND;
  declareRequest(command, call.method.input, call);
  if (kind === Kind.QUERY) withWatch(command);
  if (changes) command.option("--idempotency-key <text>", "repeat safely: a second call with it changes nothing more");
  withServer(command, call.method);
  if (call.example) withExample(command, call.example);
  return command.action(run((...values) => perform(call, command, changes, values.at(-1))));
}

async function perform<I extends DescMessage, O extends DescMessage>(
  call: Call<I, O>,
  command: Command,
  changes: boolean,
  options: CallOptions,
): Promise<number> {
  const settings = readSettings(options, process.env);
  const reading = { clients: connectClients(settings), orgId: options.org ?? "" };
  const request = await readRequest(call.method.input, call, command, reading);
  const idempotencyKey = changes ? (options.idempotencyKey ?? `cli-${randomUUID()}`) : undefined;
  let response: MessageShape<O> | undefined;
  const look = async () => {
    response = await callOnce(settings, call.method, request, idempotencyKey);
    return options.json ? [safeJson(toJson(call.method.output, response))] : call.show(response);
  };
  try {
    await printAgain(options, look);
  } catch (error) {
    const problem = explain(error, settings.url);
    const fix = `it may have been done; to repeat it safely, add --idempotency-key ${idempotencyKey}`;
    return report(changes && problem.maybeAccepted ? { ...problem, fix } : problem, options.json);
  }
  return call.exitCode?.(response!) ?? exitCodes.ok;
}
