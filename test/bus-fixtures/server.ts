/** A server in a process of its own, to be killed: `node server.ts '{"data": …, "leaseMs": …}'` prints its URL. */
import { pino } from "pino";
import { createServer } from "../../src/server.ts";

const options = JSON.parse(process.argv[2] ?? "{}") as object;
const server = await createServer({
  port: 0,
  rateLimit: 0,
  egressAllow: ["127.0.0.1"],
  log: pino({ level: "silent" }),
  ...options,
});
console.error(`listening on ${await server.listen()}`);
