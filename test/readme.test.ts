import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { settings } from "../src/config.ts";
import { services } from "../src/services.ts";
import { start } from "./harness.ts";

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
    signal: AbortSignal.timeout(1_000),
  });
  if (!stream) return (await response.text()).includes('"UNIMPLEMENTED"');
  const reader = response.body!.getReader();
  const { value } = await reader.read();
  await reader.cancel();
  return Buffer.from(value ?? [])
    .toString("utf8")
    .includes('"UNIMPLEMENTED"');
}
