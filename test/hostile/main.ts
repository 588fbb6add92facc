/**
 * The hostile-input suite: `npm run test:hostile` makes 5,000 attempts of every kind, in clear and over TLS; `npm run test:hostile -- --quick` takes less
 * than a minute. Prints a table, the curve of the server's memory and what was wrong, and writes hostile-result.json.
 */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { attacks } from "./attacks.ts";
import { rule } from "./judge.ts";
import { toText } from "./report.ts";
import { type Result, run } from "./run.ts";

const { values: flags } = parseArgs({
  options: {
    quick: { type: "boolean", default: false },
    seed: { type: "string", default: String(Date.now() % 1_000_000_000) },
    count: { type: "string" },
    only: { type: "string" },
    over: { type: "string", default: "clear,tls" },
    out: { type: "string", default: "hostile-result.json" },
    help: { type: "boolean", default: false },
  },
});
const help = `Usage: npm run test:hostile -- [flags]
  --quick        100 attempts instead of 5,000, p99 told and not judged: less than a minute
  --seed NUMBER  repeats the choices of a run
  --count NUMBER attempts of a kind
  --only TEXT    kinds whose name contains the text
  --over LIST    clear, tls or both (clear,tls)
  --out FILE     where the result goes (hostile-result.json)`;

async function main(): Promise<void> {
  // The certificate is made for the run.
  process.env.NODE_TLS_REJECT_UNAUTHORIZED = "0";
  process.removeAllListeners("warning");
  const seed = Number(flags.seed);
  const only = flags.only;
  const chosen = only === undefined ? attacks : attacks.filter(({ name }) => name.includes(only));
  const folder = mkdtempSync(join(tmpdir(), "moltwire-hostile-"));
  const results: Result[] = [];
  console.log(`seed ${seed}\n\n${rule}\n`);
  try {
    for (const over of flags.over.split(",")) {
      const result = await run({
        folder,
        isTls: over === "tls",
        // What is inside a message is the same over TLS.
        attacks: flags.quick && over === "tls" ? chosen.filter(({ twin }) => twin === "bare") : chosen,
        seed,
        count: Number(flags.count ?? (flags.quick ? 100 : 5_000)),
        quietMs: flags.quick ? 150 : 2_000,
        judgesTime: !flags.quick,
        say: (line) => process.stderr.write(`${line}\n`),
      });
      results.push(result);
      console.log(toText(result));
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  const passed = results.every(
    ({ problems, rows }) => problems.length === 0 && rows.every((row) => row.problems.length === 0),
  );
  writeFileSync(
    flags.out,
    `${JSON.stringify({ time: new Date().toISOString(), seed, quick: flags.quick, rule, passed, results }, undefined, 2)}\n`,
  );
  console.log(passed ? "passed" : `failed; --seed ${seed} repeats the choices`);
  if (!passed) process.exitCode = 1;
}

if (flags.help) console.log(help);
else await main();
