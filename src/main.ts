/** The process: settings → server → listen → drain. */

import { ConfigError, helpText, readConfig } from "./config.ts";
import { welcome } from "./ops/welcome.ts";
import { createServer } from "./server.ts";

/** Instead of the welcome, a line of JSON. */
const jsonFlag = "--json";
const hurry = "stopping; once more to stop at once";

async function main(args: readonly string[]): Promise<void> {
  if (args.includes("--help")) return console.log(helpText());
  const config = readConfig(
    args.filter((arg) => arg !== jsonFlag),
    process.env,
  );
  const server = await createServer(config);
  const url = await server.listen();
  // Before anybody is told that it is up, and may tell it to stop.
  let stopping = false;
  const stop = () => {
    if (stopping) process.exit(1);
    stopping = true;
    console.error(hurry);
    server.close().then(
      () => process.exit(0),
      (error: unknown) => fail(error),
    );
  };
  process.on("SIGTERM", stop);
  process.on("SIGINT", stop);
  // Without a certificate it stays what it is: the terminal is gone.
  if (server.certificate) process.on("SIGHUP", () => void server.reloadCertificate());
  const { operatorKey, certificate } = server;
  const { encrypts } = server.app.vault;
  console.log(
    args.includes(jsonFlag)
      ? JSON.stringify({ url, encrypts, ...(operatorKey && { operatorKey }) })
      : welcome({ url, config, operatorKey, encrypts, certificate }),
  );
  console.error(`listening on ${url}`);
}

/** One line a person can act on; the stack only for a fault of the program's own. */
function fail(error: unknown): never {
  if (error instanceof ConfigError) console.error(`moltwire: ${error.message}`);
  else if (error instanceof Error && "code" in error && error.code === "EADDRINUSE") {
    console.error(
      `moltwire: ${error.message}.\n  Another program has the port; stop it, or choose another with --port.`,
    );
  } else console.error("moltwire: could not start:", error);
  process.exit(1);
}

main(process.argv.slice(2)).catch(fail);
