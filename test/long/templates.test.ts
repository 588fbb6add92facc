import { execFileSync } from "node:child_process";
import { chmodSync, cpSync, mkdtempSync, readdirSync, renameSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { root, run } from "../../scripts/clients/tools.ts";
import { start } from "../harness.ts";

/** Plugins and libraries are fetched, code is generated and compiled. */
const maxMs = 900_000;
const folder = mkdtempSync(join(tmpdir(), "moltwire-templates-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }), maxMs);

/** The first of these programs that is not on this machine. */
const lacking = (...programs: readonly string[]) =>
  programs.find((program) => {
    try {
      execFileSync("sh", ["-c", `command -v ${program}`], { stdio: "ignore" });
      return false;
    } catch {
      return true;
    }
  });

const lacks = lacking("javac", "mvn", "protoc");
if (lacks) console.warn(`The template for Java is not tried: there is no ${lacks} here`);
describe.skipIf(lacks)("the template for Java", () => {
  test(
    "gives code that compiles, by which a program reads what it wrote, and the reason of an error",
    async () => {
      const java = join(folder, "java");
      cpSync(join(root, "clients/templates/java"), java, { recursive: true });
      const bin = join(folder, "bin");
      const platform = process.arch === "arm64" ? "linux-aarch_64" : "linux-x86_64";
      const plugin = `io.grpc:protoc-gen-grpc-java:1.76.0:exe:${platform}`;
      await run("mvn", ["-q", "-B", "dependency:copy", `-Dartifact=${plugin}`, `-DoutputDirectory=${bin}`], {
        cwd: java,
      });
      const [fetched] = readdirSync(bin);
      renameSync(join(bin, fetched!), join(bin, "protoc-gen-grpc-java"));
      chmodSync(join(bin, "protoc-gen-grpc-java"), 0o755);
      await run(
        join(root, "node_modules/.bin/buf"),
        ["generate", "--template", "clients/templates/java.buf.gen.yaml", "-o", java],
        { env: { PATH: `${bin}${delimiter}${process.env.PATH}` } },
      );
      await run("mvn", ["-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=lib"], { cwd: java });
      // Of the generated code it compiles what the program needs.
      const options = ["-nowarn", "-cp", "lib/*", "-sourcepath", "generated/java", "-d", "classes", "Example.java"];
      await run("javac", options, { cwd: java });
      await using world = await start();
      const { key } = await (await world.org()).agent();
      const env = { MOLTWIRE_URL: world.url, MOLTWIRE_API_KEY: key };
      const said = await run("java", ["-cp", `classes${delimiter}lib/*`, "Example"], { cwd: java, env });
      expect(said.trim().split("\n")).toEqual(["world", "NOT_FOUND"]);
    },
    maxMs,
  );
});
