/**
 * Builds the console into `dist`, from which the server serves it. `--if-stale`: only when what it is made of has changed since; that is what `npm start` does, so
 * that nobody who never looks at the console waits for it.
 */
import { createHash } from "node:crypto";
import { globSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { brotliCompressSync, constants, gzipSync } from "node:zlib";

const root = import.meta.dirname;
const repository = join(root, "../..");
const folder = join(root, "dist");
const stamp = join(folder, "built-from");
/** Smaller files gain nothing. */
const leastBytes = 1_024;

/** One digest of everything the console is made of. */
function sourceDigest(): string {
  const hash = createHash("sha256");
  const sources = ["clients/console/{src/**/*,index.html,build.ts,tsconfig.json}", "gen/**/*.ts", "package-lock.json"];
  for (const name of globSync(sources, { cwd: repository, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))
    .toSorted())
    hash.update(name.slice(repository.length)).update(readFileSync(name));
  return hash.digest("hex");
}

const builtFrom = (): string => {
  try {
    return readFileSync(stamp, "utf8");
  } catch {
    return "";
  }
};

/** Beside each file its compressed forms, so that the server never compresses. */
function compress(assets: string): void {
  for (const name of readdirSync(assets)) {
    const bytes = readFileSync(join(assets, name));
    if (bytes.length < leastBytes || !/\.(js|css|svg)$/.test(name)) continue;
    writeFileSync(join(assets, `${name}.gz`), gzipSync(bytes, { level: 9 }));
    const params = { [constants.BROTLI_PARAM_QUALITY]: 9, [constants.BROTLI_PARAM_SIZE_HINT]: bytes.length };
    writeFileSync(join(assets, `${name}.br`), brotliCompressSync(bytes, { params }));
  }
}

async function main(): Promise<void> {
  const digest = sourceDigest();
  if (process.argv.includes("--if-stale")) {
    if (builtFrom() === digest) return;
    console.error("building the console, this once …");
  }
  // Whatever it is where this runs, such as in a test: React would build itself for development, at three times the size.
  process.env.NODE_ENV = "production";
  const { build } = await import("vite");
  await build({
    root,
    configFile: false,
    // Not its warnings: of the components' "use client", which means nothing here.
    logLevel: "error",
    resolve: {
      alias: {
        "@bufbuild/protovalidate/gen/buf/validate/validate_pb.js": join(root, "src/no-limits.ts"),
      },
    },
    html: { cspNonce: "MOLTWIRE_NONCE" },
    build: {
      outDir: folder,
      emptyOutDir: true,
      target: "es2023",
      // The policy of the page lets nothing be inlined.
      assetsInlineLimit: 0,
      modulePreload: { polyfill: false },
    },
  });
  compress(join(folder, "assets"));
  writeFileSync(stamp, digest);
}

try {
  await main();
} catch (error) {
  // A server without the console is better than none: its page says how to build it.
  console.error("the console could not be built:", error instanceof Error ? error.message : error);
  process.exitCode = process.argv.includes("--if-stale") ? 0 : 1;
}
