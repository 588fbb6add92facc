/** Tables for docs/reference, in Markdown: from the reasons, the declared access of methods, and the settings. */
import { type DescService, getOption } from "@bufbuild/protobuf";
import { access } from "../../gen/moltwire/api/v1/access_pb.ts";
import { httpStatuses, type Reason } from "./errors.ts";
import { commentOf } from "./image.ts";
import { accessFacts, firstSentence } from "./openapi.ts";

type Setting = {
  readonly flag: string;
  readonly form: string;
  readonly help: string;
  readonly fallback: string | undefined;
};

const head = (title: string, from: string, about: string): string =>
  `# ${title}\n\n<!-- Made by \`npm run generate\` from ${from}: change that, not this. -->\n\n${about}\n\n`;

const cell = (text: string): string => text.replaceAll("|", "\\|").replaceAll("\n", " ");
const row = (...cells: readonly string[]): string => `| ${cells.map(cell).join(" | ")} |\n`;

/** Every reason with its code and what it says. */
export function errorsTable(reasons: readonly Reason[]): string {
  const about = `A call that fails carries a code, a message for people, and a \`google.rpc.ErrorInfo\` with one of these reasons, its metadata and the trace id. Look at the
reason in programs. A task that fails tells its reason in \`task.error\`; those are marked "of tasks". Over HTTP the status follows the code.`;
  const rows = reasons.map(({ name, comment }) => {
    const [, code] = /\b[Cc]ode ([A-Z_]+)/.exec(comment) ?? [];
    const status = code && httpStatuses[code.toLowerCase()];
    return row(`\`${name}\``, code ? `\`${code.toLowerCase()}\` ${status}` : "of tasks", comment);
  });
  const table = row("reason", "code, HTTP", "when, and what it tells") + row("---", "---", "---") + rows.join("");
  return head("Errors", "proto/moltwire/api/v1/error_reason.proto", about) + table;
}

/** Who may call each method, with which scope, and what it promises. */
export function accessTable(services: readonly DescService[]): string {
  const about = `Who may call what. A higher role may do what a lower one may (PUBLIC, AGENT, ORG, OPERATOR), inside its own organisation; a key with scopes needs the scope too
(\`tasks:*\` and \`*:read\` stand for all that begin or end so). What a COMMAND, QUERY, FEED, CONVERSATION and DOWNLOAD promise stands in
[access.proto](../../proto/moltwire/api/v1/access.proto).`;
  const sections = services.map((service) => {
    const rows = service.methods.map((method) => {
      const { role, scope, kind, audited } = accessFacts(getOption(method, access));
      return row(
        `\`${method.name}\``,
        role,
        `\`${scope}\``,
        kind,
        audited ? "yes" : "",
        firstSentence(commentOf(method)),
      );
    });
    const top =
      row("method", "role", "scope", "kind", "audited", "what it does") + row("---", "---", "---", "---", "---", "---");
    return `## ${service.typeName}\n\n${top}${rows.join("")}`;
  });
  return head("Access", "the options of the methods in proto/", about) + sections.join("\n");
}

/** Every setting of the server. */
export function settingsTable(settings: Readonly<Record<string, Setting>>): string {
  const about =
    "Each setting is a variable and a flag of `npm start`; a flag wins. One that is wrong or unknown stops the start, with its name, its fault and the fix.";
  const rows = Object.entries(settings).map(([name, { flag, form, help, fallback }]) =>
    row(`\`${name}\``, `\`--${flag} ${form}\``, fallback ? `\`${fallback}\`` : "none", help),
  );
  const table = row("variable", "flag", "default", "what it sets") + row("---", "---", "---", "---") + rows.join("");
  return head("Configuration", "src/config.ts", about) + table;
}

/** Every setting as a line of a file of variables, off. */
export function environmentExample(settings: Readonly<Record<string, Setting>>): string {
  const about = [
    "# Settings of the server, for compose (deploy/.env) and systemd (/etc/moltwire/env): take away the # of what you set. Made by `npm run generate` from",
    "# src/config.ts: change that, not this. Keep the file to yourself (chmod 600): it may hold keys.",
  ];
  const lines = Object.entries(settings).map(([name, { form, help, fallback }]) =>
    [`# ${help} (${form}${fallback ? `; default: ${fallback}` : ""})`, `#${name}=${fallback ?? ""}`].join("\n"),
  );
  return `${[about.join("\n"), ...lines].join("\n\n")}\n`;
}
