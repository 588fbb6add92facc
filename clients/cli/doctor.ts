/** `moltwire doctor`: what is wrong, and what to do about it. */
import { existsSync } from "node:fs";
import { type Noun, run, withServer } from "./command.ts";
import { checkDataFolder, checkKeyFile, checkNode } from "./doctor-local.ts";
import { checkServer } from "./doctor-server.ts";
import { exitCodes } from "./exit-codes.ts";
import { paint, plain, print, printJson } from "./output.ts";
import { profilesFile } from "./profiles.ts";
import { type ConnectionOptions, readSettings } from "./settings.ts";

/** One thing that was looked at. */
export type Finding = { readonly check: string; readonly detail: string } & (
  | { readonly state: "ok" | "skip" }
  /** `fail` keeps something from working; `warn` will, or should not stay so. */
  | { readonly state: "warn" | "fail" /** What to do. */; readonly fix: string }
);

/** Adds the command. */
export const doctor: Noun = (program) => {
  withServer(program.command("doctor"))
    .description("check this machine, the server and the key, with a fix for each finding")
    .action(run((options) => examine(options)));
};

const marks = {
  ok: paint("green", "✔"),
  warn: paint("yellow", "!"),
  fail: paint("red", "✘"),
  skip: paint("dim", "–"),
} as const;

/** Looks at everything and prints each finding with its fix. Returns the exit code: 1 if anything failed. */
async function examine(options: ConnectionOptions): Promise<number> {
  const settings = readSettings(options, process.env);
  const findings: Finding[] = [
    checkNode(process.version),
    ...[options.keyFile ?? profilesFile(process.env)].filter((path) => existsSync(path)).map(checkKeyFile),
    checkDataFolder(settings.url, process.env.MOLTWIRE_DATA || ".moltwire"),
    ...(await checkServer(settings)),
  ];
  if (options.json) printJson({ findings });
  else show(findings);
  return findings.some(({ state }) => state === "fail") ? exitCodes.failed : exitCodes.ok;
}

function show(findings: readonly Finding[]): void {
  const width = Math.max(...findings.map(({ check }) => check.length));
  for (const finding of findings) {
    print(`${marks[finding.state]} ${finding.check.padEnd(width)}  ${plain(finding.detail)}`);
    if ("fix" in finding) print(`  ${"".padEnd(width)}  ${paint("cyan", "fix:")} ${plain(finding.fix)}`);
  }
  const count = (state: Finding["state"]) => findings.filter((finding) => finding.state === state).length;
  print(
    `\n${count("ok")} good, ${count("warn")} to look at, ${count("fail")} broken${count("skip") > 0 ? `, ${count("skip")} not checked` : ""}`,
  );
}
