// Ends with 0 if the server of this machine says that it is healthy, else with 1. For containers and load balancers that run a command.
const port = process.env.MOLTWIRE_PORT || "6658";
const answer = await fetch(`http://127.0.0.1:${port}/moltwire.ops.v1.StatusService/GetStatus`, {
  method: "POST",
  headers: { "content-type": "application/json" },
  body: "{}",
  signal: AbortSignal.timeout(4_000),
}).catch(() => undefined);
const status = answer?.ok ? await answer.json() : {};
process.exit(status.healthy === true ? 0 : 1);
