/** `--watch`: the same question again and again, for as long as somebody looks. */
import { setTimeout as delay } from "node:timers/promises";
import { type Command, Option } from "commander";
import { seconds } from "./command.ts";
import { print } from "./output.ts";

const defaultSeconds = 2;
/** To the upper left corner, and all behind it cleared. */
const home = "\u001b[H\u001b[J";

/** Adds the option. */
export const withWatch = (command: Command): Command =>
  command.addOption(
    new Option(
      "--watch [seconds]",
      `ask again every ${defaultSeconds} s, or so often, and print what has changed, until Ctrl-C`,
    ).argParser(seconds),
  );

/** The option as commander has read it: true without a number. */
export type WatchOptions = { readonly watch?: number | true; readonly json?: boolean };

/**
 * Prints the lines that `look` answers; with --watch again each time they are others than before: in their place on a terminal, else after them. Ends
 * by what `look` throws.
 */
export async function printAgain({ watch, json }: WatchOptions, look: () => Promise<readonly string[]>): Promise<void> {
  const inPlace = watch !== undefined && process.stdout.isTTY && !json;
  let before: string | undefined;
  for (;;) {
    const lines = await look();
    const now = lines.join("\n");
    if (now !== before) {
      if (inPlace) process.stdout.write(home);
      for (const line of lines) print(line);
    }
    before = now;
    if (watch === undefined) return;
    await delay((watch === true ? defaultSeconds : watch) * 1_000);
  }
}
