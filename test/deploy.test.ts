import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { environmentExample } from "../scripts/reference/tables.ts";
import { readConfig, settings } from "../src/config.ts";

const deploy = join(import.meta.dirname, "../deploy");
const read = (file: string) => readFileSync(join(deploy, file), "utf8");
const files = readdirSync(deploy).filter((file) => file !== ".env");

test("deploy/.env.example has every setting with what holds without it, and the server takes those", () => {
  const example = read(".env.example");
  expect(example).toBe(environmentExample(settings));
  const given = [...example.matchAll(/^#(MOLTWIRE_\w+)=(.*)$/gm)].map(([, name, value]) => [name!, value!] as const);
  expect(given.map(([name]) => name)).toEqual(Object.keys(settings));
  expect(readConfig([], Object.fromEntries(given))).toEqual(readConfig([], {}));
});

test("every variable that a file in deploy/ sets is a setting of the server", () => {
  const known = new Set(Object.keys(settings));
  for (const file of files)
    for (const [name] of read(file).matchAll(/\bMOLTWIRE_[A-Z_]+\b/g))
      expect(known, `${file}: ${name}`).toContain(name);
});

test("files that deploy/ names are there", () => {
  for (const file of files)
    for (const [, path] of read(file).matchAll(/\bdeploy\/([\w.-]+\w)/g))
      if (path !== ".env") expect(existsSync(join(deploy, path!)), `${file}: ${path}`).toBe(true);
});

const systemd = ["/bin/systemd-analyze", "/usr/bin/systemd-analyze"].find((path) => existsSync(path));
test.skipIf(!systemd)("systemd finds nothing wrong with the unit", () => {
  const folder = mkdtempSync(join(tmpdir(), "moltwire-unit-"));
  try {
    writeFileSync(join(folder, "moltwire.service"), read("moltwire.service"));
    const said = execFileSync(systemd!, ["verify", "--man=no", join(folder, "moltwire.service")], { encoding: "utf8" });
    expect(said).not.toContain("moltwire.service");
  } finally {
    rmSync(folder, { recursive: true });
  }
});
