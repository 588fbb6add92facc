/**
 * Builds the package into `dist`, which is what is published: `npm publish clients/typescript/dist`. JavaScript and declarations of this folder and of the generated code,
 * which is generated anew without the rules of validation: the server checks them, and they are a third of its size.
 */
import { execFileSync } from "node:child_process";
import { cpSync, globSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const here = import.meta.dirname;
const repository = join(here, "../..");
const tool = (name: string) => join(repository, "node_modules/.bin", name);
/** Only for those who build it. */
const own = new Set(["build.ts", "generate-errors.ts"]);

const generation = {
  version: "v2",
  inputs: [
    {
      directory: repository,
      exclude_paths: ["buf", "connectrpc", "grpc"].map((each) => join(repository, "third_party/proto", each)),
      exclude_types: ["buf.validate.field", "buf.validate.message", "buf.validate.oneof"],
    },
  ],
  plugins: [
    {
      local: tool("protoc-gen-es"),
      out: "gen",
      opt: ["target=ts", "import_extension=ts", "erasable_syntax=true"],
    },
  ],
};

const compilerOptions = {
  target: "es2022",
  lib: ["es2024", "esnext.disposable"],
  module: "nodenext",
  types: ["node"],
  rootDir: ".",
  declaration: true,
  rewriteRelativeImportExtensions: true,
  strict: true,
  exactOptionalPropertyTypes: true,
  verbatimModuleSyntax: true,
  skipLibCheck: true,
};

type Exports = Record<string, string | Record<string, string>>;

/** package.json for the built files: each `.ts` is a `.js` with its declarations, and the generated code can be imported too. */
function publishedPackage(): string {
  const { private: _, ...source } = JSON.parse(readFileSync(join(here, "package.json"), "utf8"));
  const built = (file: string) => ({ types: file.replace(/ts$/, "d.ts"), default: file.replace(/ts$/, "js") });
  const each = (of: Exports, change: (file: string) => unknown): object =>
    Object.fromEntries(
      Object.entries(of).map(([key, to]) => [key, typeof to === "string" ? change(to) : each(to, change)]),
    );
  const exports = { ...each(source.exports, built), "./gen/*": { types: "./gen/*.d.ts", default: "./gen/*.js" } };
  return `${JSON.stringify({ ...source, exports, imports: each(source.imports, (file) => built(file).default) }, null, 2)}\n`;
}

/** Builds into the folder, which is emptied first. */
export function build(folder: string): void {
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  const stage = mkdtempSync(join(tmpdir(), "moltwire-client-"));
  try {
    symlinkSync(join(repository, "node_modules"), join(stage, "node_modules"));
    execFileSync(tool("buf"), ["generate", "--template", JSON.stringify(generation), "--output", stage], {
      cwd: repository,
      stdio: ["ignore", "ignore", "inherit"],
    });
    for (const name of globSync("*.ts", { cwd: here }).filter((each) => !own.has(each)))
      writeFileSync(join(stage, name), readFileSync(join(here, name), "utf8").replaceAll('"../../gen/', '"./gen/'));
    const published = publishedPackage();
    writeFileSync(join(stage, "package.json"), published.replaceAll(".d.ts", ".ts").replaceAll(".js", ".ts"));
    const settings = { compilerOptions: { ...compilerOptions, outDir: folder }, include: ["*.ts", "gen"] };
    writeFileSync(join(stage, "tsconfig.json"), JSON.stringify(settings));
    execFileSync(tool("tsc"), ["-p", stage], { stdio: ["ignore", "inherit", "inherit"] });
    writeFileSync(join(folder, "package.json"), published);
    cpSync(join(here, "README.md"), join(folder, "README.md"));
    cpSync(join(repository, "LICENSE"), join(folder, "LICENSE"));
  } finally {
    rmSync(stage, { recursive: true, force: true });
  }
}

if (import.meta.main) build(join(here, "dist"));
