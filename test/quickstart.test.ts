import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { expect, test } from "vitest";
import { cleanEnv, main, node } from "./cli-process.ts";

const text = readFileSync(new URL("../docs/quickstart.md", import.meta.url), "utf8");
const blocks = [...text.matchAll(/^```(sh|js)\n(.*?)^```/gms)].map(([, kind, body]) => ({ kind: kind!, body: body! }));
/** Ten processes start, one after the other, on a machine that does other things too. */
const maxMs = 90_000;
const server = join(import.meta.dirname, "../src/main.ts");

async function freePort(): Promise<number> {
  const listener = createServer().listen(0, "127.0.0.1");
  await once(listener, "listening");
  const { port } = listener.address() as { port: number };
  listener.close();
  await once(listener, "close");
  return port;
}

test(
  "docs/quickstart.md works as it stands, but for ports and the key",
  async () => {
    expect(blocks.map(({ kind }) => kind)).toEqual(["sh", "sh", "sh", "js", "sh", "sh"]);
    const folder = mkdtempSync(join(tmpdir(), "quickstart-"));
    const [started, ...rest] = blocks;
    const [, allow] = /^npm install\nMOLTWIRE_EGRESS_ALLOW=(\S+) npm start\n$/.exec(started!.body)!;
    const env = { ...cleanEnv(), MOLTWIRE_EGRESS_ALLOW: allow };
    // What `npm start` starts.
    const running = spawn(node, [server, "--json", "--port", "0", "--data", join(folder, "data")], {
      env,
      stdio: ["ignore", "pipe", "ignore"],
    });
    try {
      const [line] = (await once(createInterface({ input: running.stdout }), "line")) as [string];
      const { url, operatorKey } = JSON.parse(line) as { url: string; operatorKey: string };
      const port = await freePort();
      const said = (body: string) =>
        body
          .replaceAll("http://127.0.0.1:6658", url)
          .replaceAll("mw_…", operatorKey)
          .replaceAll("npx moltwire", `'${node}' '${main}'`)
          .replaceAll("9000", String(port))
          // A shell at a terminal goes on while the agent runs; this one waits until it takes connections, and ends it at its end.
          .replace(
            "node shouter.mjs &",
            `'${node}' shouter.mjs & trap "kill $!" EXIT; until curl -s -o /dev/null -d '{"task":{"input":{"text":""}}}' http://127.0.0.1:${port}/; do sleep 0.1; done`,
          );
      const script = rest.map(({ kind, body }) => {
        if (kind === "sh") return said(body);
        writeFileSync(join(folder, "shouter.mjs"), said(body));
        return "";
      });
      const { promise, resolve, reject } = Promise.withResolvers<string>();
      execFile(
        "sh",
        ["-euc", ["exec 2>&1", ...script].join("\n")],
        { cwd: folder, env, timeout: maxMs },
        (error, stdout, stderr) => (error ? reject(new Error(`${stdout}\n${stderr}`)) : resolve(stdout)),
      );
      const shown = await promise;
      expect(shown.match(/✔ COMPLETED/g)).toHaveLength(2);
      expect(shown).toContain('"text": "hello"');
      expect(shown).toContain('"shouted": "HELLO"');
      expect(shown).toContain('"shouted":"FROM ANYWHERE"');
      expect(shown).toMatch(/"traces":\[\{/);
    } finally {
      running.kill("SIGKILL");
      rmSync(folder, { recursive: true, force: true });
    }
  },
  maxMs,
);
