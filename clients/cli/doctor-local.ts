/** What doctor sees on this machine. */
import { accessSync, constants, existsSync, statSync } from "node:fs";
import { dirname, resolve } from "node:path";
import type { Finding } from "./doctor.ts";

const leastNode = 24;

/** Whether this Node is new enough. `version` as in process.version. */
export function checkNode(version: string): Finding {
  const check = "node";
  if (Number(/^v(\d+)/.exec(version)?.[1]) >= leastNode) return { check, state: "ok", detail: version };
  const fix = "run by `npm run` in the project, which brings its own, or install Node 24";
  return { check, state: "fail", detail: `${version} is older than ${leastNode}`, fix };
}

/** Whether others of this machine can read the key. */
export function checkKeyFile(path: string): Finding {
  const mode = statSync(path).mode & 0o777;
  if ((mode & 0o077) === 0) return { check: "key file", state: "ok", detail: `${path} is yours alone` };
  const detail = `${path} can be read by others (mode ${mode.toString(8)})`;
  return { check: "key file", state: "warn", detail, fix: `chmod 600 ${path}` };
}

/** Whether a server started here could write its data. Skipped when the server is another machine's. */
export function checkDataFolder(url: string, folder: string): Finding {
  const check = "data folder";
  const host = new URL(url).hostname;
  if (!/^(localhost|127\.\d+\.\d+\.\d+|\[::1\])$/.test(host)) {
    return { check, state: "skip", detail: `the server is on ${host}, not on this machine` };
  }
  const path = resolve(folder);
  const fix = "set MOLTWIRE_DATA to a folder that you can write to, and that no one else can";
  if (existsSync(path) && !statSync(path).isDirectory())
    return { check, state: "fail", detail: `${path} is a file`, fix };
  const nearest = nearestExisting(path);
  try {
    accessSync(nearest, constants.W_OK | constants.X_OK);
  } catch {
    return { check, state: "fail", detail: `${nearest} cannot be written to`, fix };
  }
  return { check, state: "ok", detail: nearest === path ? path : `${path} (a first start will make it)` };
}

const nearestExisting = (path: string): string => (existsSync(path) ? path : nearestExisting(dirname(path)));
