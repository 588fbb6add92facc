/** What the suite starts as a server, `relay.ts SOCKET`: passes what it asks for on to the process that has the servers, and the answer back, until it is ended. */
import { connect } from "node:net";

const socket = connect(process.argv[2]!);
socket.once("error", (error) => {
  console.error(`conformance: ${error.message}`);
  process.exit(1);
});
socket.once("close", () => process.exit(0));
process.once("SIGTERM", () => process.exit(0));
// Its end would be the server's.
process.stdin.pipe(socket, { end: false });
socket.pipe(process.stdout);
