/** The whole command line: every command there is, what all have in common, and how it says what is wrong with its arguments. */
import { Command } from "commander";
import manifest from "../../package.json" with { type: "json" };
import { admin } from "./admin.ts";
import { agent } from "./agent.ts";
import { audit } from "./audit.ts";
import { backup } from "./backup.ts";
import { billing } from "./billing.ts";
import { type Noun, withServer } from "./command.ts";
import { toldOf } from "./comments.ts";
import { completion } from "./completion.ts";
import { contract } from "./contract.ts";
import { demo } from "./demo.ts";
import { dev } from "./dev.ts";
import { doctor } from "./doctor.ts";
import { exitCodes, exitCodesHelp } from "./exit-codes.ts";
import { gateway } from "./gateway.ts";
import { addMissing } from "./generated.ts";
import { grant } from "./grant.ts";
import { argumentTerm, help } from "./help.ts";
import { init } from "./init.ts";
import { key } from "./key.ts";
import { lab } from "./lab.ts";
import { ledger } from "./ledger.ts";
import { listing } from "./listing.ts";
import { market } from "./market.ts";
import { migrate } from "./migrate.ts";
import { org } from "./org.ts";
import { columns } from "./output.ts";
import { peer } from "./peer.ts";
import { report } from "./problem.ts";
import { login, logout, profile } from "./profile.ts";
import { restore } from "./restore.ts";
import { review } from "./review.ts";
import { server } from "./server.ts";
import { status } from "./status.ts";
import { submit } from "./submit.ts";
import { subscription } from "./subscription.ts";
import { task } from "./task.ts";
import { trace } from "./trace.ts";
import { vault } from "./vault.ts";

/** Every command that was written, as --help groups them; the areas of each group are completed by what they lack. */
const groups: Readonly<Record<string, readonly Noun[]>> = {
  "Work:": [submit, task, trace, lab],
  "What agents share:": [],
  "What may be done, and what was not:": [],
  "Parties and what they agreed on:": [agent, contract, org, grant, gateway, peer, key],
  "Credits, and what they buy:": [billing, listing, subscription, review, market],
  "Running it:": [server, dev, demo, status, doctor, admin, audit, vault, ledger, backup, restore, migrate],
  "This command:": [init, login, logout, profile, completion, help],
};

/** Makes the command line, to be parsed once. */
export function commandLine(): Command {
  const program = new Command("moltwire")
    .description("Contracts, tasks and traces for agents, from the command line.")
    .version(manifest.version)
    .enablePositionalOptions()
    .exitOverride()
    .configureOutput({
      outputError: (text) => {
        const message = text
          .replace(/^error: /, "")
          .replace(/\s+/g, " ")
          .trim();
        report(
          { exitCode: exitCodes.usage, reason: "USAGE", message, fix: "see --help" },
          process.argv.includes("--json"),
        );
      },
    })
    .configureHelp({
      helpWidth: Math.min(100, columns()),
      commandDescription: toldOf,
      subcommandDescription: toldOf,
      optionDescription: toldOf,
      subcommandTerm: (command) => [command.name(), ...command.registeredArguments.map(argumentTerm)].join(" "),
    })
    .helpCommand(false)
    .addHelpText(
      "after",
      `\nThe key is read from MOLTWIRE_API_KEY, a file, or what \`moltwire login\` has kept: on a command line it would show in \`ps\`.\n\`moltwire help COMMAND\` has more of each.\n${exitCodesHelp}`,
    );
  withServer(program);

  for (const [heading, nouns] of Object.entries(groups)) {
    program.commandsGroup(heading);
    for (const noun of nouns) noun(program);
    addMissing(program, heading);
  }
  return program;
}
