import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { payloadOf } from "../../clients/typescript/payload.ts";
import { freePort } from "../crash/server-process.ts";
import { clientsAt, eventually, type Protocol, start, type World } from "../harness.ts";

/** The version of nginx on this machine, or undefined. */
function version(): readonly number[] | undefined {
  try {
    // It says so on standard error.
    const said = execFileSync("sh", ["-c", "PATH=$PATH:/usr/sbin nginx -v 2>&1"], { encoding: "utf8" });
    return /nginx\/(\d+)\.(\d+)\.(\d+)/.exec(said)?.slice(1).map(Number);
  } catch {
    return undefined;
  }
}

/** A machine does other things too. */
const maxMs = 300_000;

const found = version();
if (!found) console.warn("deploy/nginx.conf is not tried: there is no nginx here");
const [major = 0, minor = 0, patch = 0] = found ?? [];
/** Older ones take HTTP/1.1 and HTTP/2 in clear on ports of their own only. */
const knowsBoth = major * 1e6 + minor * 1e3 + patch >= 1_025_001;
if (found && !knowsBoth)
  console.warn(`deploy/nginx.conf is tried with two ports: nginx ${found.join(".")} does not know "http2 on"`);

describe.skipIf(!found)("deploy/nginx.conf", () => {
  const folder = mkdtempSync(join(tmpdir(), "moltwire-nginx-"));
  let world: World;
  let nginx: ReturnType<typeof spawn>;
  const urls = { one: "", two: "" };

  beforeAll(async () => {
    world = await start("sqlite", { trustedProxies: ["127.0.0.1"] });
    const [one, two] = [await freePort(), await freePort()];
    urls.one = `http://127.0.0.1:${one}`;
    urls.two = knowsBoth ? urls.one : `http://127.0.0.1:${two}`;
    const shipped = readFileSync(new URL("../../deploy/nginx.conf", import.meta.url), "utf8");
    const listeners = [`listen 127.0.0.1:${one};`, knowsBoth ? "http2 on;" : `listen 127.0.0.1:${two} http2;`];
    const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map((name) => `${name}_temp_path ${name};`);
    // What it listens on and passes to, and where it writes: everything else is as it is shipped.
    const adapted = shipped
      .replaceAll(/server moltwire-1:6658;\s+server moltwire-2:6658;\s+server moltwire-3:6658;/g, () => {
        return `server 127.0.0.1:${new URL(world.url).port};`;
      })
      .replace(/listen 6658;\s+http2 on;/, listeners.join("\n"))
      .replace("http {", `http {\n${temporary.join("\n")}\naccess_log off;`);
    expect(adapted).not.toMatch(/moltwire-\d|6658/);
    writeFileSync(join(folder, "nginx.conf"), adapted);
    const settings = `daemon off; pid ${folder}/pid; ${process.getuid!() === 0 ? "user root;" : ""}`;
    const args = ["-p", `${folder}/`, "-c", join(folder, "nginx.conf"), "-e", "stderr", "-g", settings];
    nginx = spawn("nginx", args, {
      env: { ...process.env, PATH: `${process.env.PATH}:/usr/sbin` },
      stdio: ["ignore", "ignore", "inherit"],
    });
    await eventually(async () => {
      expect(nginx.exitCode).toBeNull();
      return (await fetch(`${urls.one}/`).catch(() => undefined))?.ok;
    }, maxMs);
  }, maxMs);
  afterAll(async () => {
    if (nginx?.exitCode === null) {
      const exited = once(nginx, "exit");
      nginx.kill("SIGTERM");
      await exited;
    }
    await world?.[Symbol.asyncDispose]();
    rmSync(folder, { recursive: true, force: true });
  });

  const over = (protocol: Protocol) => (["connect-json", "grpc-web"].includes(protocol) ? urls.one : urls.two);

  test.each<Protocol>(["connect-json", "connect", "grpc-web", "grpc"])(
    "lets each message of a stream pass before the next is sent, over %s",
    async (protocol) => {
      const { key, agentId } = await (await world.org()).agent();
      const { relay } = clientsAt(over(protocol), key, protocol);
      const to = { case: "toAgentId", value: agentId } as const;
      let heard = 0;
      for await (const { event } of relay.subscribe({ afterSequence: 0n })) {
        // Who is held back until more has come would wait for ever: only what was heard has the next sent.
        if (event.case === "message") heard++;
        if (heard === 5) break;
        if (event.case === "message" || heard === 0) await relay.send({ to, payload: payloadOf(heard) });
      }
      expect(heard).toBe(5);
    },
  );

  // After calls by HTTP/1.1, whose connections nginx keeps: they are of no use to gRPC.
  test("carries a conversation in both directions, over gRPC", async () => {
    const { key, agentId } = await (await world.org()).agent();
    const { relay } = clientsAt(urls.two, key, "grpc");
    const answered = Promise.withResolvers<void>();
    const frames = async function* () {
      yield { ref: "open", frame: { case: "open", value: { afterSequence: 0n } } } as const;
      await answered.promise;
      const to = { case: "toAgentId", value: agentId } as const;
      yield { ref: "sent", frame: { case: "send", value: { message: { to, payload: payloadOf("hello") } } } } as const;
    };
    const refs: string[] = [];
    for await (const { ref } of relay.converse(frames())) {
      if (ref === "open") answered.resolve();
      if (ref) refs.push(ref);
    }
    expect(refs).toEqual(["open", "sent"]);
  });
});
