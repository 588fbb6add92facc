import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { expect, test } from "vitest";
import { cleanEnv, main, node } from "./cli-process.ts";
import { first, known, quickstart } from "./docs-fixtures/quickstart.ts";

/** A dozen processes start, one after the other, on a machine that does other things too. */
const maxMs = 600_000;
const client = new URL("../clients/typescript/index.ts", import.meta.url).href;

// test/long/package.test.ts does it with the packed packages, from an empty folder, and in every language.
test(
  "docs/quickstart.md works as it stands, but for ports, the key and packages",
  async () => {
    expect(first.body).toBe("npm install ./moltwire-0.1.0.tgz ./moltwire-client-0.1.0.tgz\nnpx moltwire dev\n");
    expect(known.body).toBe("export MOLTWIRE_URL=http://127.0.0.1:6658\nexport MOLTWIRE_API_KEY=mw_…\n");
    const folder = mkdtempSync(join(tmpdir(), "quickstart-"));
    const env = cleanEnv();
    const dev = spawn(node, [main, "dev", "--port", "0", "--no-console", "--json"], {
      env,
      stdio: ["ignore", "pipe", "ignore"],
    });
    try {
      const [line] = (await once(createInterface({ input: dev.stdout }), "line")) as [string];
      const { url, orgKey: key } = JSON.parse(line) as { url: string; orgKey: string };
      const change = (body: string) =>
        body
          .replaceAll("npx moltwire", `'${node}' '${main}'`)
          .replaceAll(/^(.*)\bnode (?=\w+\.m)/gm, `$1'${node}' `)
          .replaceAll('"@moltwire/client"', `"${client}"`);
      const shown = await quickstart({ folder, url, key, env, change, without: ["python", "go"] });
      expect(shown).toContain('"greeting": "Hello, Ada!"');
      expect(shown).toMatch(/"shouted": "HELLO",\s+"by": "TypeScript"|"by": "TypeScript",\s+"shouted": "HELLO"/);
      expect(shown).toContain('"whispered":"from anywhere"');
      expect(shown).toMatch(/"traces":\[\{/);
    } finally {
      dev.kill("SIGKILL");
      rmSync(folder, { recursive: true, force: true });
    }
  },
  maxMs,
);
