/** `moltwire completion`: what a shell needs to complete commands, options and the words that options take. */
import { Argument, type Command } from "commander";
import { asJson, type Noun, run } from "./command.ts";
import { bashScript, fishScript, type Tables, zshScript } from "./completion-scripts.ts";
import { exitCodes } from "./exit-codes.ts";
import { wordsOf } from "./field.ts";
import { printJson } from "./output.ts";

const scripts = { bash: bashScript, zsh: zshScript, fish: fishScript };

/** Adds the command. */
export const completion: Noun = (program) => {
  program
    .command("completion")
    .description("the completion of a shell, for its start-up file: source <(moltwire completion bash)")
    .addArgument(new Argument("<shell>", "bash, zsh or fish").choices(Object.keys(scripts)))
    .addHelpText(
      "after",
      `\nExamples:\n  echo 'source <(moltwire completion bash)' >> ~/.bashrc\n  echo 'source <(moltwire completion zsh)' >> ~/.zshrc        # after compinit\n  moltwire completion fish > ~/.config/fish/completions/moltwire.fish`,
    )
    .addOption(asJson())
    .action(
      run(async (shell: keyof typeof scripts, { json }) => {
        const script = scripts[shell](tablesOf(program));
        if (json) printJson({ shell, script });
        else process.stdout.write(script);
        return exitCodes.ok;
      }),
    );
};

/** What may follow each command, and each option. Nothing here is of a user: names of commands, options and enums. */
export function tablesOf(program: Command): Tables {
  const words: Record<string, string[]> = {};
  const values: Record<string, readonly string[]> = {};
  const walk = (command: Command, path: string): void => {
    const options = command.options.filter(({ hidden }) => !hidden);
    const shells = command.registeredArguments.flatMap(({ argChoices }) => argChoices ?? []);
    words[path] = [
      ...command.commands.map((each) => each.name()),
      ...shells,
      ...options.map(({ long }) => long!),
      "--help",
    ];
    for (const option of options) if (wordsOf(option).length > 0) values[`${path} ${option.long}`] = wordsOf(option);
    for (const each of command.commands) walk(each, path === "" ? each.name() : `${path} ${each.name()}`);
  };
  walk(program, "");
  return { words, values };
}
