/** `moltwire doctor`: what is wrong, and what to do about it. */
import { checkDataFolder, checkKeyFile, checkNode } from "./doctor-local.ts";
import { checkServer } from "./doctor-server.ts";
import { exitCodes } from "./exit-codes.ts";
import { paint, plain, print, printJson } from "./output.ts";
import { type ConnectionOptions, readSettings } from "./settings.ts";

/** One thing that was looked at. */
export type Finding = {
  readonly check: string;
  /** `fail` keeps something from working; `warn` will, or should not stay so; `skip` could not be looked at. */
  readonly state: "ok" | "warn" | "fail" | "skip";
  readonly detail: string;
  /** What to do; every `warn` and `fail` has it. */
  readonly fix?: string;
};

const marks = {
  ok: paint("green", "✔"),
  warn: paint("yellow", "!"),
  fail: paint("red", "✘"),
  skip: paint("dim", "–"),
} as const;

/** Looks at everything and prints each finding with its fix. Returns the exit code: 1 if anything failed. */
export async function doctor(options: ConnectionOptions): Promise<number> {
  const settings = readSettings(options, process.env);
  const findings: Finding[] = [
    checkNode(process.version),
    ...(options.keyFile === undefined ? [] : [checkKeyFile(options.keyFile)]),
    checkDataFolder(settings.url, process.env.MOLTWIRE_DATA || ".moltwire"),
    ...(await checkServer(settings)),
  ];
  if (options.json) printJson({ findings });
  else show(findings);
  return findings.some(({ state }) => state === "fail") ? exitCodes.failed : exitCodes.ok;
}

function show(findings: readonly Finding[]): void {
  const width = Math.max(...findings.map(({ check }) => check.length));
  for (const { check, state, detail, fix } of findings) {
    print(`${marks[state]} ${check.padEnd(width)}  ${plain(detail)}`);
    if (fix) print(`  ${"".padEnd(width)}  ${paint("cyan", "fix:")} ${plain(fix)}`);
  }
  const count = (state: Finding["state"]) => findings.filter((finding) => finding.state === state).length;
  print(
    `\n${count("ok")} good, ${count("warn")} to look at, ${count("fail")} broken${count("skip") > 0 ? `, ${count("skip")} not checked` : ""}`,
  );
}
