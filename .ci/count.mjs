// count.mjs STEPS REPORT…: adds up the runner's own reports, names what failed and prints "N passed, N failed" last.
// STEPS holds the names of the steps that failed, one a line; it is empty when none did.
import { readFileSync } from "node:fs";
import { relative } from "node:path";

const [steps, ...files] = process.argv.slice(2);
const failedSteps = steps.split("\n").filter(Boolean);
const reports = files.map((file) => JSON.parse(readFileSync(file, "utf8")));
const sum = (name) => reports.reduce((total, report) => total + report[name], 0);
const firstLines = (text) => text.split("\n").slice(0, 6).join("\n    ").slice(0, 800);

for (const suite of reports.flatMap((report) => report.testResults)) {
  const file = relative(process.cwd(), suite.name);
  const failures = suite.assertionResults.filter((test) => test.status === "failed");
  for (const test of failures) console.log(`failed: ${file}: ${test.fullName}\n    ${firstLines(test.failureMessages[0] ?? "")}`);
  if (suite.status === "failed" && failures.length === 0) console.log(`failed: ${file}\n    ${firstLines(suite.message ?? "")}`);
}
for (const step of failedSteps) console.log(`failed step: ${step}`);

const skipped = sum("numPendingTests") + sum("numTodoTests");
// A file that cannot be loaded, an error outside a test, a check that is no test: each has failed without a failed test.
const failed = sum("numFailedTests") || failedSteps.length;
console.log(`${sum("numPassedTests")} passed, ${failed} failed${skipped ? `, ${skipped} skipped` : ""}`);
process.exit(failed === 0 && sum("numPassedTests") > 0 ? 0 : 1);
