import type { Config } from "../config.ts";

type Facts = {
  readonly url: string;
  readonly config: Config;
  readonly operatorKey: string | undefined;
  readonly encrypts: boolean;
};

/** What the server prints when it is up. At the very first start: the operator key, this once, and two lines to copy. */
export function welcome({ url, config, operatorKey, encrypts }: Facts): string {
  const storage = config.databaseUrl
    ? `PostgreSQL at ${withoutPassword(config.databaseUrl)}`
    : config.data === ":memory:"
      ? "memory: gone at the stop"
      : config.data;
  const facts = [`Moltwire  ${url}`, `data      ${storage}`, ...(encrypts ? [] : ["at rest   not encrypted"])];
  if (!operatorKey) return box(facts);
  const host = new URL(url).host;
  const method = "moltwire.bus.v1.BusService/SubmitTask";
  const body = `'{"contractId":"echo","input":{"hello":"world"}}'`;
  const curl = [
    `curl ${url}/${method} \\`,
    `  -H "authorization: Bearer $MOLTWIRE_API_KEY" -H 'content-type: application/json' \\`,
    `  -d ${body}`,
  ];
  const grpcurl = [
    `grpcurl -plaintext -H "authorization: Bearer $MOLTWIRE_API_KEY" \\`,
    `  -d ${body} \\`,
    `  ${host} ${method}`,
  ];
  const key = ["operator key, shown this once:", `  ${operatorKey}`];
  const copied = ["To try it, copy:", "", `export MOLTWIRE_API_KEY=${operatorKey}`, "", ...curl, "", ...grpcurl].map(
    (line) => (line ? `  ${line}` : ""),
  );
  return [box([...facts, "", ...key]), "", ...copied, ""].join("\n");
}

function box(lines: readonly string[]): string {
  const width = Math.max(...lines.map((line) => line.length));
  return [
    `┌─${"─".repeat(width)}─┐`,
    ...lines.map((line) => `│ ${line.padEnd(width)} │`),
    `└─${"─".repeat(width)}─┘`,
  ].join("\n");
}

function withoutPassword(text: string): string {
  const url = new URL(text);
  url.password = "";
  return url.href;
}
