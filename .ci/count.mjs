// Adds up the runner's own reports: prints "N passed, N failed" and fails when there is nothing to add up.
import { readFileSync } from "node:fs";

const reports = process.argv.slice(2).map((file) => JSON.parse(readFileSync(file, "utf8")));
const sum = (name) => reports.reduce((total, report) => total + report[name], 0);
const skipped = sum("numPendingTests") + sum("numTodoTests");
// A file that cannot be loaded has no tests to fail.
const failed = sum("numFailedTests") + reports.filter((report) => !report.success && report.numFailedTests === 0).length;
console.log(`${sum("numPassedTests")} passed, ${failed} failed${skipped ? `, ${skipped} skipped` : ""}`);
process.exit(failed === 0 && sum("numPassedTests") > 0 ? 0 : 1);
