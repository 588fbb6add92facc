import type { Clock } from "../../clock.ts";
import { type Adapter, type Adapters, type Answer, AttemptFault } from "../adapter.ts";
import { jsonFault } from "../payload.ts";
import { shorten, timedOut, unusable } from "./faults.ts";

const maxTokens = 1e12;
const maxModelChars = 128;

/** As CustomEndpoint takes it. */
const namePattern = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;

/**
 * The adapters of the program that embeds the server.
 *
 * @throws Error for a name that no endpoint can have.
 */
export function customAdapters(adapters: Adapters, clock: Clock): Adapters {
  return Object.fromEntries(
    Object.entries(adapters).map(([name, adapter]) => {
      if (!namePattern.test(name))
        throw new Error(
          `adapters: "${name}" is no name: 1 to 64 letters, digits, ".", "_" and "-", a letter or digit first`,
        );
      return [name, heldToLimits(adapter, clock)];
    }),
  );
}

/**
 * An adapter of the program that embeds the server, held to what the built-in ones keep by themselves: its time ends when the contract's does,
 * its output is within limits, and an error that says nothing of the work means that the work has failed.
 */
const heldToLimits =
  (adapter: Adapter, clock: Clock): Adapter =>
  async (endpoint, assignment, signal) => {
    const { timeoutMs } = assignment;
    const over = new AbortController();
    const { promise: ended, reject } = Promise.withResolvers<never>();
    const end = () => {
      over.abort(signal.reason);
      reject(signal.reason);
    };
    const timer = clock.after(timeoutMs, () => {
      const late = timedOut("lost", timeoutMs);
      over.abort(late);
      reject(late);
    });
    signal.addEventListener("abort", end, { once: true });
    if (signal.aborted) end();
    try {
      const answer = await Promise.race([adapter(endpoint, assignment, over.signal), ended]);
      return checked(answer);
    } catch (error) {
      if (error instanceof AttemptFault || signal.aborted) throw error;
      const message = `the adapter failed: ${shorten(error instanceof Error ? error.message : String(error))}`;
      throw new AttemptFault("ADAPTER_ERROR", "failed", message, { cause: error });
    } finally {
      timer.cancel();
      signal.removeEventListener("abort", end);
    }
  };

function checked({ output, usage }: Answer): Answer {
  const json = output === undefined ? undefined : JSON.stringify(output);
  if (json === undefined) throw unusable("its output is no JSON");
  const fault = jsonFault(output);
  if (fault) throw unusable(`its output is ${fault.message}`);
  const { inputTokens, outputTokens, model } = usage;
  const counts = [inputTokens, outputTokens].every((n) => Number.isSafeInteger(n) && n >= 0 && n <= maxTokens);
  if (!counts) throw unusable("the tokens of its usage are no whole numbers from 0");
  if (typeof model !== "string" || model.length > maxModelChars || model.includes("\0"))
    throw unusable(`the model of its usage is no text of at most ${maxModelChars} characters`);
  return { output: JSON.parse(json), usage: { inputTokens, outputTokens, model } };
}
