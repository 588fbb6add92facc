/** `moltwire login`, `logout` and `profile`: servers and keys that need not be said again. */
import { create } from "@bufbuild/protobuf";
import type { Command } from "commander";
import { StatusService } from "../../gen/moltwire/ops/v1/status_service_pb.ts";
import { ask, firstLine } from "./ask.ts";
import { addNoun, asJson, type Noun, profileOption, run, withServer } from "./command.ts";
import { withExample } from "./comments.ts";
import { callOnce } from "./connect.ts";
import { exitCodes } from "./exit-codes.ts";
import { note, print, printJson, columns as width } from "./output.ts";
import { defaultProfile, type Profile, profilesFile, readProfiles, writeProfiles } from "./profiles.ts";
import { type ConnectionOptions, checkKey, defaultUrl, readKeyFile, readUrl, UsageError } from "./settings.ts";
import { renderTable } from "./table.ts";

const { getStatus } = StatusService.method;
const nameForm = /^[a-z0-9][a-z0-9._-]{0,63}$/i;

/** Adds the commands. */
export const login: Noun = (program) => {
  const command = program
    .command("login")
    .description(
      "keep a server and a key, so that they need not be said again. The key is asked for, or the first line of standard input",
    );
  withServer(withExample(command, "moltwire login --url https://moltwire.example.com --profile work")).action(
    run(logIn),
  );
};

/** Adds the command. */
export const logout: Noun = (program) => {
  const command: Command = program
    .command("logout")
    .description("forget a server and its key; the key itself goes on until `moltwire key revoke`")
    .addOption(profileOption())
    .addOption(asJson());
  command.action(run(logOut));
};

/** Adds the commands. */
export const profile: Noun = (program) => {
  const noun = addNoun(program, "profile", "the servers and keys that `moltwire login` has kept");
  noun
    .command("list")
    .description("list them, without their keys; * is the one that is used")
    .addOption(profileOption())
    .addOption(asJson())
    .action(run(list));
};

const nameOf = ({ profile: name }: ConnectionOptions): string =>
  name ?? (process.env.MOLTWIRE_PROFILE || defaultProfile);

async function logIn(options: ConnectionOptions): Promise<number> {
  const name = nameOf(options);
  if (!nameForm.test(name))
    throw new UsageError(`${name} is no name of a profile`, "letters, digits, and . _ - after the first, at most 64");
  const profiles = readProfiles(process.env);
  const url = readUrl(options.url ?? profiles[name]?.url ?? (process.env.MOLTWIRE_URL || defaultUrl), "--url");
  const key = checkKey(await readKey(options), options.keyFile ?? "standard input");
  if (key === undefined) throw new UsageError("there is no key", "type it, pipe it in, or give --key-file");
  // What the server does not take is not kept.
  await callOnce({ url, key }, getStatus, create(getStatus.input));
  writeProfiles(process.env, { ...profiles, [name]: { url, key } });
  const file = profilesFile(process.env);
  if (options.json) printJson({ profile: name, url, file });
  else {
    print(`logged in to ${url} as profile ${name}`);
    note(`the key is in ${file}, which only you can read`);
  }
  return exitCodes.ok;
}

async function readKey({ keyFile }: ConnectionOptions): Promise<string> {
  if (keyFile !== undefined) return readKeyFile(keyFile);
  return process.stdin.isTTY ? await ask("key: ") : await firstLine();
}

async function logOut(options: ConnectionOptions): Promise<number> {
  const name = nameOf(options);
  const { [name]: gone, ...left } = readProfiles(process.env);
  if (!gone) throw new UsageError(`there is no profile ${name}`, "moltwire profile list");
  writeProfiles(process.env, left);
  if (options.json) printJson({ profile: name, url: gone.url });
  else print(`forgot profile ${name} of ${gone.url}`);
  return exitCodes.ok;
}

type Row = Pick<Profile, "url"> & { readonly name: string; readonly used: boolean };

async function list(options: ConnectionOptions): Promise<number> {
  const rows = Object.entries(readProfiles(process.env)).map(
    ([name, { url }]): Row => ({ name, url, used: name === nameOf(options) }),
  );
  if (options.json) for (const { name, url, used } of rows) printJson({ profile: name, url, used }, 0);
  else if (rows.length === 0) note("no profiles yet; for the first:\n  moltwire login --url https://…");
  else {
    const columns = [
      { title: "", cell: ({ used }: Row) => (used ? "*" : "") },
      { title: "PROFILE", cell: ({ name }: Row) => name },
      { title: "SERVER", cell: ({ url }: Row) => url },
    ];
    for (const line of renderTable(columns, rows, width())) print(line);
  }
  return exitCodes.ok;
}
