/** The files of a new agent, by language. */

/** Files by their paths. */
export type Files = Readonly<Record<string, string>>;

const readme = (name: string, start: string) => `# ${name}

An agent of Moltwire. It registers itself with the contract \`${name}/greet\`, and does the tasks that are asked for under it.

\`\`\`
npx moltwire dev                     # a server to try it on; copy its two export lines
${start}
npx moltwire submit ${name}/greet '{"name":"Ada"}'
\`\`\`

It needs MOLTWIRE_URL and MOLTWIRE_API_KEY, the key of an administrator of its organisation. For more than trying out, give it a key of its own:
\`npx moltwire key create --agent ${name}\`, and leave the registration to somebody who may.
`;

const contractJson = `{ type: "object", required: ["name"], properties: { name: { type: "string" } } }`;

/** An agent that pulls its tasks: it needs no port. */
export const typescriptStarter = (name: string, version: string): Files => ({
  "agent.ts": `import { AlreadyExists, connect } from "moltwire/client";

// By MOLTWIRE_URL and MOLTWIRE_API_KEY.
const mw = connect();

/** Makes it, or finds it made. */
const once = (made: Promise<unknown>) =>
  made.catch((error: unknown) => {
    if (!(error instanceof AlreadyExists)) throw error;
  });

const inputSchema = ${contractJson};
await once(mw.contracts.registerContract({ contractId: "${name}/greet", version: "1.0.0", inputSchema }));
await once(
  mw.agents.registerAgent({ name: "${name}", capabilities: ["${name}/greet"], endpoint: { kind: { case: "pull", value: {} } } }),
);
const { agents } = await mw.agents.listAgents({ name: "${name}" });

console.log("${name} waits for tasks; Ctrl-C ends it");
await mw.serve(
  ({ input }) => {
    const { name } = input as { name: string };
    return { greeting: \`Hello, \${name}!\` };
  },
  { agentId: agents[0]!.agentId, onProblem: (error) => console.error(error) },
);
`,
  "package.json": `${JSON.stringify(
    {
      name,
      private: true,
      type: "module",
      engines: { node: ">=24" },
      scripts: { start: "node agent.ts" },
      dependencies: { moltwire: version },
    },
    null,
    2,
  )}\n`,
  ".gitignore": "node_modules/\n",
  "README.md": readme(name, "npm install && npm start"),
});

/** An agent that is an HTTP server, of Python's standard library alone. */
export const pythonStarter = (name: string): Files => ({
  "agent.py": `"""An agent: an HTTP server that is given its tasks. Python 3.10 and later, nothing to install."""
import json
import os
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

URL = os.environ.get("MOLTWIRE_URL", "http://127.0.0.1:6658")
KEY = os.environ["MOLTWIRE_API_KEY"]


def call(method, request):
    """Calls a method of the server; what is there already is left as it is."""
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    body = json.dumps(request).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{URL}/{method}", body, headers)) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        problem = json.load(error)
        if problem.get("code") != "already_exists":
            raise SystemExit(f"{method}: {problem.get('message')}") from None


class Agent(BaseHTTPRequestHandler):
    def do_POST(self):
        task = json.loads(self.rfile.read(int(self.headers["content-length"])))["task"]
        answer = json.dumps({"output": {"greeting": f"Hello, {task['input']['name']}!"}}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


server = ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "0"))), Agent)
endpoint = {"http": {"url": f"http://127.0.0.1:{server.server_port}/task"}}
schema = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}
call("moltwire.bus.v1.ContractService/RegisterContract", {"contractId": "${name}/greet", "version": "1.0.0", "inputSchema": schema})
made = call("moltwire.bus.v1.AgentService/RegisterAgent", {"name": "${name}", "capabilities": ["${name}/greet"], "endpoint": endpoint})
if made is None:
    found = call("moltwire.bus.v1.AgentService/ListAgents", {"name": "${name}"})["agents"][0]
    change = {"agentId": found["agentId"], "change": {"endpoint": endpoint}, "updateMask": "endpoint"}
    call("moltwire.bus.v1.AgentService/UpdateAgent", change)
print("${name} waits for tasks at", endpoint["http"]["url"], flush=True)
server.serve_forever()
`,
  "README.md": readme(name, "python3 agent.py"),
});
