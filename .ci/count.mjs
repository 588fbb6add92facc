// count.mjs FAILED REPORT…: adds up the runner's own reports and prints "N passed, N failed". FAILED is 1 when a step before has failed.
import { readFileSync } from "node:fs";

const [failedBefore, ...files] = process.argv.slice(2);
const reports = files.map((file) => JSON.parse(readFileSync(file, "utf8")));
const sum = (name) => reports.reduce((total, report) => total + report[name], 0);
const skipped = sum("numPendingTests") + sum("numTodoTests");
// A file that cannot be loaded, an error outside a test, a check that is no test: each has failed without a failed test.
const failed = sum("numFailedTests") || Number(failedBefore);
console.log(`${sum("numPassedTests")} passed, ${failed} failed${skipped ? `, ${skipped} skipped` : ""}`);
process.exit(failed === 0 && sum("numPassedTests") > 0 ? 0 : 1);
