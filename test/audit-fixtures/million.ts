/** A year's audit log, 1,000,000 rows: how long the command takes to verify it, and whether it finds one flipped bit. `npm run audit:million`; `-- 20000` for fewer rows. */
import { spawn } from "node:child_process";
import { randomInt } from "node:crypto";
import { once } from "node:events";
import { closeSync, mkdtempSync, openSync, readFileSync, readSync, rmSync, statSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { main, node } from "../cli-process.ts";
import { writeExport } from "./logs.ts";

const rows = Number(process.argv[2] ?? 1_000_000);
/** The time is promised for a year; of fewer rows it says nothing. */
const most = { s: rows < 1_000_000 ? Number.POSITIVE_INFINITY : 10, megabytes: 300 };
const folder = mkdtempSync(join(tmpdir(), "moltwire-audit-"));
const path = join(folder, "year.ndjson");

/** Runs the command as a user does; gives how long it took, from its start to its end, and the most memory it had. */
async function verify(...more: string[]) {
  const startMs = performance.now();
  const child = spawn(node, [main, "audit", "verify", path, ...more], { stdio: ["ignore", "pipe", "pipe"] });
  let said = "";
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding("utf8").on("data", (text) => (said += text));
  let megabytes = 0;
  const look = setInterval(() => {
    const [, kilobytes] = /^VmHWM:\s+(\d+)/m.exec(readFileSync(`/proc/${child.pid}/status`, "utf8")) ?? [];
    if (kilobytes !== undefined) megabytes = Math.round(Number(kilobytes) / 1_000);
  }, 50);
  child.once("exit", () => clearInterval(look));
  const [status] = (await once(child, "close")) as [number | null];
  return { s: (performance.now() - startMs) / 1_000, status, megabytes, said: said.trim() };
}

/** Flips one bit of the file; again puts it back. */
function flip(at: number, bit: number): void {
  const file = openSync(path, "r+");
  const byte = Buffer.alloc(1);
  readSync(file, byte, 0, 1, at);
  byte[0] = byte[0]! ^ (1 << bit);
  writeSync(file, byte, 0, 1, at);
  closeSync(file);
}

try {
  const head = await writeExport(path, rows);
  const { size } = statSync(path);
  console.log(`${rows} rows, ${(size / 1e6).toFixed(0)} MB`);
  const whole = await verify("--head", `${head.number}:${head.hash}`);
  console.log(`verified in ${whole.s.toFixed(2)} s with ${whole.megabytes} MB: ${whole.said}`);
  let passed = whole.status === 0 && whole.s < most.s && whole.megabytes < most.megabytes;
  // Near the end, so that all before it has to be read; then anywhere, or, of fewer rows, always in the same place.
  const isYear = rows >= 1_000_000;
  for (const at of [size - 300, isYear ? randomInt(size) : Math.trunc(size / 3)]) {
    const bit = isYear ? randomInt(8) : 2;
    flip(at, bit);
    const flipped = await verify();
    flip(at, bit);
    console.log(`bit ${bit} of byte ${at} flipped, ${flipped.s.toFixed(2)} s: ${flipped.said}`);
    passed &&= flipped.status === 1;
  }
  console.log(passed ? "passed" : "FAILED");
  process.exitCode = passed ? 0 : 1;
} finally {
  rmSync(folder, { recursive: true });
}
