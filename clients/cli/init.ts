/** `moltwire init`: a folder with an agent to begin with. */
import { existsSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { Option } from "commander";
import manifest from "../../package.json" with { type: "json" };
import { asJson, type Noun, run } from "./command.ts";
import { withExample } from "./comments.ts";
import { exitCodes } from "./exit-codes.ts";
import { print, printJson, shellWord } from "./output.ts";
import { UsageError } from "./settings.ts";
import { pythonStarter, typescriptStarter } from "./starters.ts";

const starters = {
  typescript: (name: string) => typescriptStarter(name, manifest.version),
  python: pythonStarter,
};

type InitOptions = { readonly language: keyof typeof starters; readonly json?: boolean };

/** Adds the command. */
export const init: Noun = (program) => {
  const command = program
    .command("init")
    .description("make a folder with an agent that registers itself and does tasks")
    .argument("<folder>", "where; its last part is the agent's name")
    .addOption(
      new Option("--language <name>", "typescript or python (default: typescript)")
        .choices(Object.keys(starters))
        .default("typescript"),
    )
    .addOption(asJson());
  withExample(command, "moltwire init my-agent && cat my-agent/README.md").action(run(make));
};

async function make(path: string, { language, json }: InitOptions): Promise<number> {
  const folder = resolve(path);
  const name = basename(folder);
  if (!/^[a-z][a-z0-9-]{0,62}$/.test(name))
    throw new UsageError(`${name} is no name of an agent`, "lower-case letters, digits and -, beginning with a letter");
  if (existsSync(folder) && readdirSync(folder).length > 0)
    throw new UsageError(`${path} is not empty`, "choose a folder that is not there yet");
  const files = starters[language](name);
  mkdirSync(folder, { recursive: true });
  for (const [file, text] of Object.entries(files)) writeFileSync(join(folder, file), text, { flag: "wx" });
  if (json) printJson({ folder, language, files: Object.keys(files) });
  else {
    print(`made ${Object.keys(files).join(", ")} in ${path}; next:`);
    print(`  cd ${shellWord(path)} && cat README.md`);
  }
  return exitCodes.ok;
}
