import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { describe, expect, test } from "vitest";
import { settings } from "../src/config.ts";
import { services } from "../src/services.ts";
import { json, value } from "./bus-fixtures/bus.ts";
import { clientsAt, start } from "./harness.ts";

const readme = readFileSync(new URL("../README.md", import.meta.url), "utf8");

describe("the README", () => {
  test("lists exactly the methods that are not built yet", async () => {
    await using world = await start();
    const unbuilt: string[] = [];
    for (const service of services) {
      for (const method of service.methods) {
        if (
          await answersUnimplemented(
            world.url,
            world.operatorKey,
            `${service.typeName}/${method.name}`,
            method.methodKind,
          )
        ) {
          unbuilt.push(`${service.name}/${method.name}`);
        }
      }
    }
    const section = readme.split("## What is not built yet")[1]!.split("\n## ")[0]!;
    const listed = [...section.matchAll(/^- `(\w+)`: (.*)$/gm)].flatMap(([, service, methods]) =>
      methods!.split(", ").map((name) => `${service}/${name}`),
    );
    expect(listed.toSorted()).toEqual(unbuilt.toSorted());
  });

  test("shows an adapter that works as it stands", async () => {
    const [, example] = /```js\n(import \{ createServer \} from "moltwire\/server";\n[^`]*)```/.exec(readme)!;
    // The package leads to what is built; here nothing is, yet.
    const source = JSON.stringify(new URL("../src/server.ts", import.meta.url).href);
    const folder = mkdtempSync(join(import.meta.dirname, "readme-example-"));
    try {
      writeFileSync(join(folder, "example.mjs"), example!.replace('"moltwire/server"', source));
      const child = spawn(process.execPath, [join(folder, "example.mjs")], { stdio: ["ignore", "pipe", "inherit"] });
      try {
        const [line] = (await once(createInterface({ input: child.stdout }), "line")) as [string];
        const [url, key] = line.split(" ");
        const { agents, contracts, bus } = clientsAt(url!, key);
        await contracts.registerContract({ contractId: "shout", version: "1.0.0" });
        const custom = { adapter: "shout", config: { mark: "!" } };
        await agents.registerAgent({
          name: "a",
          capabilities: ["shout"],
          endpoint: { kind: { case: "custom", value: custom } },
        });
        const { task } = await bus.submitTask({ contractId: "shout", input: value({ text: "hello" }) });
        expect(json(task?.output)).toEqual({ shouted: "HELLO!" });
        const streamed: string[] = [];
        for await (const { event } of bus.watchTask({ taskId: task!.taskId }))
          if (event.case === "chunk") streamed.push(event.value);
        expect(streamed).toEqual(["HELLO!"]);
      } finally {
        child.kill("SIGKILL");
      }
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });

  test("lists every setting with its flag and its default", () => {
    for (const [name, { flag, fallback }] of Object.entries(settings)) {
      const row = readme.split("\n").find((line) => line.startsWith(`| \`${name}\` | \`--${flag}\` |`));
      expect(row, name).toBeDefined();
      if (fallback) expect(row).toContain(`\`${fallback}\``);
    }
  });
});

/** Calls a method with an empty request; whatever else it may answer, is it UNIMPLEMENTED? */
async function answersUnimplemented(url: string, key: string, path: string, kind: string): Promise<boolean> {
  const stream = kind !== "unary";
  const response = await fetch(`${url}/${path}`, {
    method: "POST",
    headers: {
      authorization: `Bearer ${key}`,
      "content-type": stream ? "application/connect+json" : "application/json",
    },
    body: stream ? Buffer.concat([Buffer.from([0, 0, 0, 0, 2]), Buffer.from("{}")]) : "{}",
    signal: AbortSignal.timeout(60_000),
  });
  if (!stream) return (await response.text()).includes('"UNIMPLEMENTED"');
  const reader = response.body!.getReader();
  const { value } = await reader.read();
  await reader.cancel();
  return Buffer.from(value ?? [])
    .toString("utf8")
    .includes('"UNIMPLEMENTED"');
}
