/** The console's built files: `/` and `/assets/…`, from memory, and nothing else, so that no path of a method or another page is ever theirs. */
import { readdirSync, readFileSync } from "node:fs";
import { extname, join } from "node:path";
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import type { Ids } from "../ids.ts";

const builtFolder = join(import.meta.dirname, "../../clients/console/dist");

/** Where the built page has a nonce, a new one goes for each answer: the only styles that may stand in the page. */
const noncePlace = "MOLTWIRE_NONCE";

const types: Readonly<Record<string, string>> = {
  ".js": "text/javascript; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".svg": "image/svg+xml",
  ".woff2": "font/woff2",
};

/** A file and its compressed forms, where the build has made them. */
type Asset = { readonly type: string; readonly plain: Buffer; readonly br?: Buffer; readonly gzip?: Buffer };

type Built = { readonly index: string; readonly assets: ReadonlyMap<string, Asset> };

/** Scripts and styles are files of this server; nothing is loaded from elsewhere, framed, or sent elsewhere. */
const policyOf = (nonce: string): string =>
  [
    "default-src 'none'",
    "script-src 'self'",
    `style-src 'self' 'nonce-${nonce}'`,
    "img-src 'self' data:",
    "font-src 'self'",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
  ].join("; ");

const guarded = {
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-resource-policy": "same-origin",
  "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
};

/** Serves the assets; gives what answers `/`. A console that is built while the server runs is found at the next request. */
export function consolePages(
  http: FastifyInstance,
  ids: Pick<Ids, "bytes">,
  folder = builtFolder,
): (request: FastifyRequest, reply: FastifyReply) => FastifyReply {
  let built: Built | undefined;
  const read = () => (built ??= readBuilt(folder));

  http.get<{ Params: { name: string } }>("/assets/:name", (request, reply) => {
    const asset = read()?.assets.get(request.params.name);
    if (!asset)
      return reply.code(404).headers(guarded).type("text/plain; charset=utf-8").send("there is no such file\n");
    const [encoding, bytes] = encoded(asset, request.headers["accept-encoding"] ?? "");
    if (encoding) reply.header("content-encoding", encoding);
    // Its name changes with its content.
    return reply
      .headers({ ...guarded, vary: "accept-encoding", "cache-control": "public, max-age=31536000, immutable" })
      .type(asset.type)
      .send(bytes);
  });

  return (_request, reply) => {
    const nonce = Buffer.from(ids.bytes(16)).toString("base64");
    const index = read()?.index;
    const html = index?.replaceAll(noncePlace, nonce) ?? notBuilt(nonce);
    return reply
      .code(index ? 200 : 503)
      .headers({ ...guarded, "content-security-policy": policyOf(nonce), "cache-control": "no-cache" })
      .type("text/html; charset=utf-8")
      .send(html);
  };
}

/** The smallest form that the browser takes. */
function encoded({ plain, br, gzip }: Asset, accepted: string): readonly ["br" | "gzip" | undefined, Buffer] {
  const takes = (name: string) => new RegExp(`(^|,)\\s*${name}\\s*(,|$|;(?!\\s*q=0(\\.0*)?\\s*(,|$)))`).test(accepted);
  if (br && takes("br")) return ["br", br];
  if (gzip && takes("gzip")) return ["gzip", gzip];
  return [undefined, plain];
}

/** All of it at once: some megabytes, and no name of a request ever reaches the disk. */
function readBuilt(folder: string): Built | undefined {
  let index: string;
  try {
    index = readFileSync(join(folder, "index.html"), "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
  const assets = join(folder, "assets");
  const names = new Set(readdirSync(assets));
  const bytesOf = (name: string) => (names.has(name) ? readFileSync(join(assets, name)) : undefined);
  const found = [...names].flatMap((name): [string, Asset][] => {
    const type = types[extname(name)];
    if (!type) return [];
    const [br, gzip] = [bytesOf(`${name}.br`), bytesOf(`${name}.gz`)];
    return [[name, { type, plain: bytesOf(name)!, ...(br && { br }), ...(gzip && { gzip }) }]];
  });
  return { index, assets: new Map(found) };
}

const style = `body{font:16px/1.6 system-ui,sans-serif;max-width:36rem;margin:4rem auto;padding:0 1rem;color:#1a1a1a;background:#fff}
pre{padding:1rem;background:#f1f3f5;border-radius:6px;overflow:auto}
@media (prefers-color-scheme:dark){body{color:#e9ecef;background:#141414}pre{background:#25262b}a{color:#74c0fc}}`;

const notBuilt = (nonce: string): string =>
  `<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Moltwire</title><style nonce="${nonce}">${style}</style></head><body>
<h1>The console is not built yet</h1>
<p>The server runs. To have its console here, build it once in its folder, and reload this page:</p>
<pre>npm run build:console</pre>
<p>Without it everything can be done by the <code>moltwire</code> command and by the methods that <code>curl</code> shows at this address.</p>
</body></html>`;
