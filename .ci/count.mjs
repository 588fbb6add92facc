// count.mjs FAILED SKIPPED REPORT…: adds up the runner's own reports, names what failed or was skipped and prints "N passed, N failed" last.
// FAILED and SKIPPED hold the names of the steps that failed or could not run here, one a line; empty when there are none.
import { readFileSync } from "node:fs";
import { relative } from "node:path";

const [failedNames, skippedNames, ...files] = process.argv.slice(2);
const failedSteps = failedNames.split("\n").filter(Boolean);
const skippedSteps = skippedNames.split("\n").filter(Boolean);
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
for (const step of skippedSteps) console.log(`skipped step: ${step}`);

const skipped = sum("numPendingTests") + sum("numTodoTests") + skippedSteps.length;
// A file that cannot be loaded, an error outside a test, a check that is no test: each has failed without a failed test.
const failed = sum("numFailedTests") || failedSteps.length;
console.log(`${sum("numPassedTests")} passed, ${failed} failed${skipped ? `, ${skipped} skipped` : ""}`);
process.exit(failed === 0 && sum("numPassedTests") > 0 ? 0 : 1);
