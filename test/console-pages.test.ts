import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { brotliCompressSync, gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { services } from "../src/services.ts";
import { start, type World } from "./harness.ts";

const html = { accept: "text/html,application/xhtml+xml,*/*;q=0.8" };
const script = "console.log('built')".repeat(100);

let folder: string;
let world: World;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "console-"));
  world = await start("sqlite", { consoleFolder: join(folder, "dist") });
});
afterAll(async () => {
  await world[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true });
});

function build(): void {
  const assets = join(folder, "dist/assets");
  mkdirSync(assets, { recursive: true });
  writeFileSync(
    join(folder, "dist/index.html"),
    '<!doctype html><meta property="csp-nonce" nonce="MOLTWIRE_NONCE"><script type="module" src="/assets/a-1.js" nonce="MOLTWIRE_NONCE"></script>',
  );
  writeFileSync(join(assets, "a-1.js"), script);
  writeFileSync(join(assets, "a-1.js.br"), brotliCompressSync(script));
  writeFileSync(join(assets, "a-1.js.gz"), gzipSync(script));
  writeFileSync(join(assets, "notes.txt"), "not served");
  writeFileSync(join(folder, "secret.js"), "outside");
}

describe("/", () => {
  test("says how the console is built while it is not, and serves it once it is", async () => {
    const before = await fetch(world.url, { headers: html });
    expect([before.status, await before.text()]).toEqual([503, expect.stringContaining("npm run build:console")]);
    build();
    const after = await fetch(world.url, { headers: html });
    expect(after.status).toBe(200);
    expect(after.headers.get("cache-control")).toBe("no-cache");
    expect(after.headers.get("vary")).toContain("accept");
    expect(await after.text()).toContain("/assets/a-1.js");
  });

  test("lets in no script but its own files, and no style without the nonce of this one answer", async () => {
    const nonces = [];
    for (let n = 0; n < 2; n++) {
      const page = await fetch(world.url, { headers: html });
      const policy = page.headers.get("content-security-policy")!;
      const directives = Object.fromEntries(policy.split("; ").map((one) => [one.split(" ")[0], one]));
      expect(directives["default-src"]).toBe("default-src 'none'");
      expect(directives["script-src"]).toBe("script-src 'self'");
      expect(policy).not.toContain("unsafe");
      expect(policy).toContain("frame-ancestors 'none'");
      expect(policy).toContain("base-uri 'none'");
      const [, nonce] = /'nonce-([\w+/=]{24})'/.exec(directives["style-src"]!)!;
      const text = await page.text();
      expect(text).toContain(`nonce="${nonce}"`);
      expect(text).not.toContain("MOLTWIRE_NONCE");
      nonces.push(nonce);
      expect(page.headers.get("x-content-type-options")).toBe("nosniff");
      expect(page.headers.get("referrer-policy")).toBe("no-referrer");
    }
    expect(nonces[0]).not.toBe(nonces[1]);
  });

  test("goes on telling programs the methods", async () => {
    const json = (await (await fetch(world.url, { headers: { accept: "application/json" } })).json()) as {
      name: string;
    };
    expect(json.name).toBe("moltwire");
    expect(await (await fetch(world.url)).text()).toContain("moltwire.bus.v1.BusService/SubmitTask");
  });
});

describe("assets", () => {
  test.each([
    ["br, gzip", "br"],
    ["gzip, deflate", "gzip"],
    ["br;q=0, gzip;q=0.5", "gzip"],
    ["identity", null],
  ])("are kept for ever, and sent as they were packed: accept-encoding %s gets %s", async (accepted, encoding) => {
    const asset = await fetch(`${world.url}/assets/a-1.js`, { headers: { "accept-encoding": accepted } });
    expect(asset.status).toBe(200);
    expect(asset.headers.get("content-encoding")).toBe(encoding);
    expect(asset.headers.get("cache-control")).toBe("public, max-age=31536000, immutable");
    expect(asset.headers.get("content-type")).toBe("text/javascript; charset=utf-8");
    expect(asset.headers.get("vary")).toBe("accept-encoding");
    expect(await asset.text()).toBe(script);
  });

  test.each(["nothing.js", "notes.txt", "..%2f..%2fsecret.js", "%2e%2e%2findex.html", "constructor", "a-1.js%00"])(
    "%s is not among them",
    async (name) => {
      const answer = await fetch(`${world.url}/assets/${name}`);
      expect(answer.status).toBe(404);
      expect(await answer.text()).not.toMatch(/outside|not served|<!doctype/);
    },
  );
});

test("no path of a method or of another page is the console's, and unknown ones stay unknown", async () => {
  for (const method of services.flatMap((service) => service.methods)) {
    const answer = await fetch(`${world.url}/${method.parent.typeName}/${method.name}`, { headers: html });
    expect(answer.headers.get("content-type") ?? "").not.toContain("text/html");
    await answer.body?.cancel();
  }
  expect(await (await fetch(`${world.url}/contact`, { headers: html })).text()).toContain("<h1>Contact</h1>");
  expect((await fetch(`${world.url}/metrics`, { headers: html })).status).toBe(401);
  expect((await fetch(`${world.url}/traces`, { headers: html })).status).toBe(404);
});
