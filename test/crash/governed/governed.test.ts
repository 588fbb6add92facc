import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { freshDatabase, postgresUrl } from "../../engines.ts";
import { integrity, integrityOfCopy } from "../integrity.ts";
import { full, seed, wholeNumber } from "../settings.ts";
import { phases } from "./phases.ts";
import { governedRun, type Result } from "./run.ts";

/** With fewer it may happen that no kill comes at a telling moment. */
const fewKills = 5;
/** In each phase. */
const kills = wholeNumber("CRASH_PHASE_KILLS", 20);
/** A server on PostgreSQL waits for the lease of the killed one; all of them with FULL. */
const postgresKills = full ? kills : Math.min(kills, Math.max(fewKills, Math.ceil(kills / 5)));
const names = Object.keys(phases);

test(`a governed task survives ${kills} kills in each of ${names.length} phases on SQLite`, async () => {
  const folder = mkdtempSync(join(tmpdir(), "moltwire-crash-"));
  const data = join(folder, "data");
  const checked: string[] = [];
  try {
    const result = await governedRun({
      storage: { MOLTWIRE_DATA: data },
      kills,
      seed,
      betweenLives: () => checked.push(...integrityOfCopy(data, join(folder, "copy"))),
    });
    summarize("SQLite", result);
    holds(result, kills);
    expect(checked.filter((verdict) => verdict !== "ok")).toEqual([]);
    expect(integrity(join(data, "moltwire.db"))).toEqual(["ok"]);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});

test.skipIf(!postgresUrl)(
  `a governed task survives ${postgresKills} kills in each of ${names.length} phases on PostgreSQL`,
  async () => {
    const { url, drop } = await freshDatabase();
    try {
      const result = await governedRun({ storage: { MOLTWIRE_DATABASE_URL: url }, kills: postgresKills, seed });
      summarize("PostgreSQL", result);
      holds(result, postgresKills);
    } finally {
      await drop();
    }
  },
);

function holds({ book, problems, killsByPhase, byState, recovered, exitCode }: Result, each: number): void {
  expect.soft(book.surprises, `what clients must not see: ${book.surprises.slice(0, 20).join("; ")}`).toEqual([]);
  expect.soft(problems, `what the server must not hold: ${problems.slice(0, 20).join("; ")}`).toEqual([]);
  expect.soft(killsByPhase, "kills").toEqual(Object.fromEntries(names.map((name) => [name, each])));
  expect.soft(exitCode, "the exit code at the stop").toBe(0);
  expect.soft(byState.COMPLETED, "completed tasks").toBeGreaterThan(0);
  if (each < fewKills) return;
  // Or the run has put nothing to the test.
  expect.soft(recovered, "tasks found after a kill").toBeGreaterThan(0);
  expect.soft(byState["FAILED OUTCOME_UNKNOWN"], "tasks whose outcome nobody knows").toBeGreaterThan(0);
  expect.soft(byState.REJECTED, "denied tasks").toBeGreaterThan(0);
  expect.soft(book.asks.filter(({ refused }) => refused).length, "tasks beyond a budget").toBeGreaterThan(0);
  expect.soft(book.lost, "calls cut by a kill").toBeGreaterThan(0);
  expect.soft(book.repeats, "calls repeated after a kill").toBeGreaterThan(0);
}

function summarize(engine: string, result: Result): void {
  const { book, killsByPhase, byState, byPhase, problems } = result;
  const counts = (of: Record<string, number>) =>
    Object.entries(of)
      .toSorted(([, a], [, b]) => b - a)
      .map(([name, n]) => `${name} ${n}`)
      .join(", ");
  console.log(
    [
      `${engine}: seed ${seed}, ${Object.values(killsByPhase).reduce((a, b) => a + b, 0)} kills`,
      ...names.map((name) => `  ${name}: ${killsByPhase[name] ?? 0} kills; ${counts(byPhase[name] ?? {})}`),
      `  ${book.asks.length} asks, ${book.asks.filter(({ refused }) => refused).length} beyond a budget, ${book.lost} calls cut, ${book.repeats} repeated, ${book.checks} checks after restarts`,
      `  ${result.tasks} tasks verified: ${counts(byState)}; ${result.recovered} recovered`,
      `  ${result.attempts} attempts, ${result.arrivals} seen by agents, ${result.spentTokens} tokens, ${result.deadLetters} dead letters`,
      `  ${result.approvals} approvals, ${result.pendingToTheEnd} pending to the end, ${result.decisions} decisions, ${result.traceEvents} trace events`,
      `  ${problems.length + book.surprises.length} wrong`,
    ].join("\n"),
  );
}
