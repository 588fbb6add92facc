import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { freshDatabase, postgresUrl } from "../engines.ts";
import { integrity, integrityOfCopy } from "./integrity.ts";
import { crashRun, type Result } from "./run.ts";
import { full, seed, wholeNumber } from "./settings.ts";

const kills = wholeNumber("CRASH_KILLS", 100);
/** Its servers take over from a killed one only when its lease has run out, so it waits more and proves less per kill; all of them with FULL. */
const postgresKills = full ? kills : Math.ceil(kills / 5);

/** With fewer it may happen that no kill comes at a telling moment. */
const fewKills = 8;

test(`what is acknowledged survives ${kills} kills of a server on SQLite`, async () => {
  const folder = mkdtempSync(join(tmpdir(), "moltwire-crash-"));
  const data = join(folder, "data");
  const checked: string[] = [];
  try {
    const result = await crashRun({
      storage: { MOLTWIRE_DATA: data },
      kills,
      seed,
      betweenLives: () => checked.push(...integrityOfCopy(data, join(folder, "copy"))),
    });
    summarize("SQLite", result);
    holds(result);
    expect(checked.filter((verdict) => verdict !== "ok")).toEqual([]);
    expect(integrity(join(data, "moltwire.db"))).toEqual(["ok"]);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});

test.skipIf(!postgresUrl)(
  `what is acknowledged survives ${postgresKills} kills of a server on PostgreSQL`,
  async () => {
    const { url, drop } = await freshDatabase();
    try {
      const result = await crashRun({ storage: { MOLTWIRE_DATABASE_URL: url }, kills: postgresKills, seed });
      summarize("PostgreSQL", result);
      holds(result);
    } finally {
      await drop();
    }
  },
);

function holds({ kills: count, problems, ledger, followed, log, exitCode, recovered, byState }: Result): void {
  expect.soft(ledger.surprises.slice(0, 20), "what clients must not see").toEqual([]);
  expect.soft(problems.slice(0, 20), "what the server must not hold").toEqual([]);
  expect.soft(firstDifference(followed, log), "the reader who came back after every kill").toBeUndefined();
  expect.soft(exitCode, "the exit code at the stop").toBe(0);
  expect.soft(byState.COMPLETED, "completed tasks").toBeGreaterThan(0);
  if (count < fewKills) return;
  // Or the run has put nothing to the test.
  expect.soft(recovered, "tasks found after a kill").toBeGreaterThan(0);
  expect.soft(byState["FAILED OUTCOME_UNKNOWN"], "tasks whose outcome nobody knows").toBeGreaterThan(0);
  expect.soft(byState.CANCELED, "canceled tasks").toBeGreaterThan(0);
  expect.soft(ledger.repeats, "idempotent repeats").toBeGreaterThan(0);
  expect.soft(ledger.lost, "calls cut by a kill").toBeGreaterThan(0);
}

function summarize(engine: string, result: Result): void {
  const { kills: count, ledger, killedStarting, acknowledged, tasks, byState, recovered, log, problems } = result;
  const states = Object.entries(byState).toSorted(([, a], [, b]) => b - a);
  console.log(
    [
      `${engine}: seed ${seed}, ${count} kills (${killedStarting} while it started), ${ledger.submits.length} submits, ${ledger.lost} calls cut`,
      `${acknowledged} acknowledged, ${ledger.repeats} repeated, ${tasks} tasks verified, ${recovered} recovered, ${log.length} trace events`,
      states.map(([state, n]) => `${state} ${n}`).join(", "),
      `${problems.length + ledger.surprises.length} wrong`,
    ].join("; "),
  );
}

function firstDifference(seen: readonly string[], log: readonly string[]): string | undefined {
  const index = log.findIndex((line, i) => line !== seen[i]);
  if (index >= 0) return `event ${index} is "${log[index]}", read as "${seen[index]}"`;
  return seen.length > log.length ? `${seen.length - log.length} events too many` : undefined;
}
