/** How scenarios check what they say. */
import { isDeepStrictEqual } from "node:util";
import { durationMs } from "@bufbuild/protobuf/wkt";
import { ConnectError } from "@connectrpc/connect";
import { ErrorInfoSchema, RetryInfoSchema } from "../../../gen/google/rpc/error_details_pb.ts";
import { explain } from "../../cli/problem.ts";

/** @throws Error saying what is so instead, if the claim does not hold. */
export function claim(holds: boolean, otherwise: string): asserts holds {
  if (!holds) throw new Error(otherwise);
}

/** @throws Error if the two differ; `what` says of what. */
export function same(what: string, is: unknown, should: unknown): void {
  claim(isDeepStrictEqual(is, should), `${what}: it is ${told(is)} and should be ${told(should)}`);
}

const told = (value: unknown): string =>
  JSON.stringify(value, (_, part) => (typeof part === "bigint" ? String(part) : part)) ?? "nothing";

/** A call that was refused, as the server says. */
export type Refusal = {
  readonly message: string;
  readonly metadata: Readonly<Record<string, string>>;
  /** When to try again, in milliseconds; undefined if it does not say. */
  readonly retryMs: number | undefined;
};

/** The refusal of a call that must be refused for this reason. */
export async function refused(reason: string, call: Promise<unknown>): Promise<Refusal> {
  const error = await call.then(
    () => undefined,
    (thrown: unknown) => thrown,
  );
  claim(error !== undefined, `the call passed and should have been refused with ${reason}`);
  const [info] = error instanceof ConnectError ? error.findDetails(ErrorInfoSchema) : [];
  if (!(error instanceof ConnectError) || info?.reason !== reason) {
    const { reason: other, message } = explain(error, "the server");
    throw new Error(`the refusal should be ${reason} and is ${other}: ${message}`, { cause: error });
  }
  const delay = error.findDetails(RetryInfoSchema)[0]?.retryDelay;
  return { message: error.rawMessage, metadata: info.metadata, retryMs: delay && durationMs(delay) };
}
