import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import { expect, test } from "vitest";

/** FULL: a year's rows, as `npm run audit:million` has them, which must be verified in time. */
const rows = process.env.FULL ? 1_000_000 : 100_000;
const program = join(import.meta.dirname, "../audit-fixtures/million.ts");

test(`a log of ${rows} rows is verified, and one flipped bit is found wherever it is`, {
  timeout: 600_000,
}, async () => {
  const { stdout } = await promisify(execFile)(process.execPath, [program, String(rows)]);
  expect(stdout).toMatch(new RegExp(`^${rows} rows, `));
  expect(stdout.match(/^bit \d of byte \d+ flipped/gm)).toHaveLength(2);
  expect(stdout).toMatch(/^passed$/m);
});
