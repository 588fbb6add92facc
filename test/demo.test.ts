import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { createServer as createHttpServer } from "node:http";
import type { AddressInfo } from "node:net";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { create } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { wrap } from "../clients/cli/output.ts";
import { checkQuotes } from "../clients/demo/answer.ts";
import { chatServer } from "../clients/demo/chat.ts";
import { compose, sentences } from "../clients/demo/compose.ts";
import { cutMarkdown, cutProto, readCorpus } from "../clients/demo/corpus.ts";
import { compareTraces } from "../clients/demo/live.ts";
import { rank, summarise } from "../clients/demo/rank.ts";
import { review } from "../clients/demo/review.ts";
import { reviewerModel } from "../clients/demo/reviewer.ts";
import { claim, refused, same } from "../clients/demo/scenarios/claim.ts";
import { scenarios } from "../clients/demo/scenarios/list.ts";
import { buildIndex, stem } from "../clients/demo/search.ts";
import { ErrorInfoSchema } from "../gen/google/rpc/error_details_pb.ts";
import { TraceEventKind, TraceEventSchema } from "../gen/moltwire/bus/v1/trace_pb.ts";

const root = join(import.meta.dirname, "..");
const node = join(root, "node_modules/.bin/node");
/** A whole one takes some seconds, and on a slow and busy machine minutes. */
const maxDemoMs = 300_000;
const [, transcript = ""] = /^\$ npm run demo\n(.*?)^```$/ms.exec(readFileSync(join(root, "README.md"), "utf8")) ?? [];

/** A screen without what differs each time: ids, addresses, numbers of things and times, and the blanks that align a column. */
const lasting = (screen: string): string =>
  screen
    .replace(/\n {28}/g, " ")
    .replace(/\b(?:[a-z]{3}_)?[0-9a-f]{32}\b/g, "<id>")
    .replace(/\S+\.(?:proto|md):\d+/g, "<place>")
    .replace(/http:\/\/\S+/g, "<url>")
    .replace(/\d{4}-\d\d-\d\dT[\d:]+Z/g, "<time>")
    .replace(/ *\b[\d.]+ (ms|s)\b/g, " <span>")
    .replace(/\d[\d,.]*\b/g, "<n>")
    .replace(/pieces?\b/g, "pieces");

/** What was said with a ✔ or a ✘, each in one line. */
const marksIn = (screen: string): string[] => lasting(screen).match(/^[✔✘] .*$/gm) ?? [];

describe("the demo, run as a user runs it", { timeout: 2 * maxDemoMs }, () => {
  let folder: string;
  const started: ChildProcess[] = [];

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "moltwire-demo-test-"));
  });
  afterEach(async () => {
    for (const child of started.splice(0)) {
      if (child.exitCode === null && child.signalCode === null) {
        child.kill("SIGTERM");
        await once(child, "exit");
      }
    }
    rmSync(folder, { recursive: true, force: true });
  });

  /** Starts the demo with a temporary folder of its own, so that what it leaves there can be seen. */
  function demo(...args: string[]) {
    return demoWith({}, ...args);
  }

  function demoWith(env: NodeJS.ProcessEnv, ...args: string[]) {
    const { OPENAI_API_KEY: _key, OPENAI_BASE_URL: _url, OPENAI_MODEL: _model, ...rest } = process.env;
    const child = spawn(node, [join(root, "clients/cli/main.ts"), "demo", ...args], {
      env: { ...rest, TMPDIR: folder, MOLTWIRE_DATABASE_URL: "postgres://nobody@127.0.0.1:1/nothing", ...env },
      stdio: ["ignore", "pipe", "pipe"],
      timeout: maxDemoMs + 5_000,
      killSignal: "SIGTERM",
    });
    started.push(child);
    let text = "";
    const bell = new EventTarget();
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding("utf8").on("data", (chunk: string) => {
        text += chunk;
        bell.dispatchEvent(new Event("text"));
      });
    }
    const closed = once(child, "close") as Promise<[number | null]>;
    return {
      child,
      text: () => text,
      ended: closed.then(([code]) => code),
      /** Waits until the output has this, and answers the match; fails when the demo ends before. */
      async says(pattern: RegExp): Promise<RegExpExecArray> {
        for (;;) {
          const match = pattern.exec(text);
          if (match) return match;
          const end = await Promise.race([once(bell, "text").then(() => undefined), closed]);
          if (end && !pattern.test(text)) throw new Error(`the demo ended without ${pattern}:\n${text}`);
        }
      },
    };
  }

  const pidsIn = (text: string): number[] => [...text.matchAll(/process (\d+) at/g)].map(([, pid]) => Number(pid));
  /** The text as if it had been written in one line: steps break theirs. */
  const flat = (text: string): string => text.replace(/\s+/g, " ");

  test("every scenario holds, as the README shows, with an answer and a trace, and nothing is left behind", async () => {
    const { ended, text } = demo();
    expect(await ended, text()).toBe(0);

    const shown = transcript.split("\n").filter((line) => !line.endsWith("…"));
    expect(marksIn(text())).toEqual(marksIn(shown.join("\n")));
    const drawn = lasting(text()).split("\n");
    const tree = lasting(shown.join("\n")).match(/^(?:trace|[├└│]| <span> {2}[A-Z]).*$/gm) ?? [];
    expect(tree.length).toBeGreaterThan(15);
    for (const line of tree) expect(drawn).toContain(line);

    const sources = [...text().matchAll(/^ {4}(\S+\.(?:proto|md)):(\d+)/gm)];
    expect(sources.length).toBeGreaterThan(0);
    for (const [, source, line] of sources) {
      expect(readFileSync(join(root, source!), "utf8").split("\n").length).toBeGreaterThanOrEqual(Number(line));
    }
    for (const contract of ["outline", "search", "compose"]) {
      expect(text()).toMatch(new RegExp(`─ research/${contract}  COMPLETED  .*planner → researcher`));
    }
    expect(text()).toMatch(/─ research\/review {2}COMPLETED {2}.*planner → reviewer/);
    expect(text()).toMatch(/reviewer answered: [1-9]\d* tokens read, [1-9]\d* written by extract-1/);
    expect(text()).toMatch(/^ {4}extract-1 {2}http:\S+, a stand-in that ranks sentences$/m);
    expect(text()).toMatch(new RegExp(`^All ${scenarios.length} held, in [\\d.]+ s\\.$`, "m"));
    expect(text()).toMatch(/^Off in this demo: encryption at rest/m);

    expect(text()).not.toContain("\u001b");
    expect(
      Math.max(
        ...text()
          .split("\n")
          .map((line) => line.length),
      ),
    ).toBeLessThanOrEqual(100);
    expect(pidsIn(flat(text()))).toHaveLength(5);
    for (const pid of pidsIn(flat(text()))) expect(isUp(pid)).toBe(false);
    expect(text()).toMatch(/^✔ ledger .*Σ = 0 over \d+ accounts and \d+ transfers/m);
    expect(readdirSync(folder)).toEqual([]);
  });

  test("a server that OPENAI_BASE_URL and OPENAI_API_KEY name reviews instead of the stand-in, and the demo says so", async () => {
    const key = `sk-${"demo".repeat(8)}`;
    const asked: string[] = [];
    const chat = chatServer("other-model", reviewerModel, key);
    const server = createHttpServer((request, response) => {
      asked.push(request.headers.authorization ?? "");
      chat(request, response);
    }).listen(0, "127.0.0.1");
    await once(server, "listening");
    const baseUrl = `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`;
    const env = { OPENAI_BASE_URL: baseUrl, OPENAI_API_KEY: key, OPENAI_MODEL: "other-model" };
    const { ended, text } = demoWith(env, "--scenario", "trace");
    expect(await ended, text()).toBe(0);
    server.close();
    expect(asked).toEqual([`Bearer ${key}`]);
    expect(text()).toContain(`    other-model  ${baseUrl}\n`);
    expect(text()).not.toContain("stand-in");
    expect(text()).not.toContain(key);
    expect(pidsIn(text())).toHaveLength(3);
    expect(text().match(/^✔ \d/gm)).toEqual(["✔ 7"]);
    expect(text()).toMatch(/^It held, in /m);
  });

  test("a scenario that fails says why, in the agent's own words; the others run all the same, and who died is said", async () => {
    const { ended, text, says } = demo("--question", "xyzzy plugh?");
    const [, pid] = await says(/✔ researcher .* process (\d+) at/);
    await says(/✘ 1 research /);
    process.kill(Number(pid), "SIGKILL");
    expect(await ended).toBe(1);
    expect(flat(text())).toMatch(
      / ✘ 1 research [\d.]+ m?s ADAPTER_ERROR: .*the documents have no word of the question fix: /,
    );
    expect(text()).toMatch(/^✘ 7 trace .*AGENT_UNREACHABLE: /m);
    expect(text()).toMatch(/^ +trace [0-9a-f]{32}$/m);
    expect(text()).toMatch(/^✘ 23 peers .*ADAPTER_ERROR: |^✘ 23 peers .*AGENT_UNREACHABLE: /m);
    const others = scenarios.filter(({ name }) => !["research", "trace", "peers"].includes(name));
    for (const { number, name } of others) expect(text()).toMatch(new RegExp(`^✔ ${number} ${name} `, "m"));
    expect(text()).toMatch(new RegExp(`^3 of ${scenarios.length} failed, in `, "m"));
    expect(text()).toContain("Note: the researcher ended with SIGKILL.");
    for (const each of pidsIn(text())) expect(isUp(each)).toBe(false);
    expect(readdirSync(folder)).toEqual([]);
  });

  test("a port that is taken fails the step of the server with what the server said", async () => {
    const taken = createServer().listen(0, "127.0.0.1");
    await once(taken, "listening");
    const { port } = taken.address() as AddressInfo;
    const { ended, text } = demo("--port", String(port));
    expect(await ended).toBe(1);
    taken.close();
    expect(flat(text())).toMatch(/ ✘ server .*the server ended with exit code \d+; it said: .*in use/);
  });

  test("Ctrl-C in the middle ends all processes and removes the data", async () => {
    const { child, ended, text, says } = demo();
    await says(/✔ server /);
    child.kill("SIGINT");
    expect(await ended, text()).toBe(130);
    expect(text()).not.toContain("✘");
    expect(pidsIn(text())).toHaveLength(4);
    for (const pid of pidsIn(text())) expect(isUp(pid)).toBe(false);
    expect(readdirSync(folder)).toEqual([]);
  });

  test("when the reader of its output goes, everything goes with it", async () => {
    const { child, ended, text, says } = demo();
    await says(/✔ server /);
    child.stdout.destroy();
    expect(await ended).toBe(0);
    expect(pidsIn(text())).toHaveLength(4);
    for (const pid of pidsIn(text())) await vi.waitFor(() => expect(isUp(pid)).toBe(false), 60_000);
    expect(readdirSync(folder)).toEqual([]);
  });

  test("--keep leaves a server up that takes the printed call, and keeps its data after Ctrl-C", async () => {
    const { child, ended, text, says } = demo(
      "--keep",
      "--scenario",
      "1",
      "--question",
      "How's a stream resumed by its cursor?",
    );
    await says(/-d '.*'\n/);
    expect(text()).toMatch(/^ {2}“.*cursor/m);
    const url = /export MOLTWIRE_URL=(\S+)/.exec(text())![1]!;
    const key = /export MOLTWIRE_API_KEY=(\S+)/.exec(text())![1]!;
    const [, body] = /-d '(.*)'\n/.exec(text())!;
    const answer = await fetch(`${url}/moltwire.bus.v1.BusService/SubmitTask`, {
      method: "POST",
      headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
      body: body!.replaceAll("'\\''", "'"),
    });
    expect(answer.status).toBe(200);
    expect(await answer.json()).toMatchObject({ task: { state: "TASK_STATE_COMPLETED" } });

    child.kill("SIGINT");
    expect(await ended).toBe(130);
    for (const pid of pidsIn(text())) expect(isUp(pid)).toBe(false);
    expect(readdirSync(/^ {2}data +(\S+)/m.exec(text())![1]!)).not.toEqual([]);
  });

  test.each([
    ["an empty question", ["--question", "  "], /^✘ USAGE {2}--question/],
    ["a scenario that there is not", ["--scenario", "99"], /^✘ USAGE {2}--scenario 99: .*\n {2}fix .*5 breaker/],
  ])("%s is refused before anything starts", async (_what, args, says) => {
    const { ended, text } = demo(...args);
    expect(await ended).toBe(2);
    expect(text()).toMatch(says);
    expect(readdirSync(folder)).toEqual([]);
  });
});

test("a step that came live otherwise than it is read is found out, and so is one that is missing", () => {
  const step = (kind: TraceEventKind) => create(TraceEventSchema, { spanId: "a", kind });
  const steps = [TraceEventKind.SUBMITTED, TraceEventKind.ROUTED, TraceEventKind.ACCEPTED].map(step);
  compareTraces(steps, steps);
  expect(() => compareTraces(steps.slice(1), steps)).toThrow("step 1 came live as");
  expect(() => compareTraces(steps.slice(0, 2), steps)).toThrow('step 3 came live as "nothing"');
  expect(() => compareTraces([...steps, step(TraceEventKind.ACCEPTED)], steps)).toThrow('was read as "nothing"');
});

describe("the researcher's search", () => {
  const passage = (text: string, line = 1) => ({ source: "a.md", line, label: "", text });

  test("a comment of a proto is a passage at its own line, under what it comments", () => {
    const lines = ["// The bus.", "message Task {", "  // Where it is,", "  // right now.", "  State state = 1;", "}"];
    expect(cutProto(lines)).toEqual([
      { line: 1, text: "The bus.", label: "Task" },
      { line: 3, text: "Where it is,\nright now.", label: "Task › state" },
    ]);
  });

  test("Markdown is cut at blank lines, list items and rows; code is left out", () => {
    const lines = ["# One", "", "A **bold**", "word.", "- first", "- second", "```", "code", "```", "| a | b |"];
    expect(cutMarkdown(lines)).toEqual([
      { line: 3, text: "A bold\nword.", label: "One" },
      { line: 5, text: "first", label: "One" },
      { line: 6, text: "second", label: "One" },
      { line: 10, text: "a  –  b", label: "One" },
    ]);
  });

  test.each([
    ["kill", "killed", "kills", "killing"],
    ["stop", "stopped", "stops", "stopping"],
    ["cause", "caused", "causes", "causing"],
    ["retry", "retries"],
  ])("%s and its forms are one term", (word, ...forms) => {
    for (const form of forms) expect(stem(form)).toBe(stem(word));
  });

  test("a rare word counts more than a common one, and a short passage more than a long one", () => {
    const filler = "and then something else was written here about other matters entirely";
    const index = buildIndex([
      passage(`the bus carries ${filler}`, 1),
      passage("the bus carries tasks", 2),
      passage("a ledger of the bus", 3),
      passage("nothing of interest", 4),
    ]);
    const { terms, unknown } = index.terms("Does the bus have a ledger or a zeppelin?", 8);
    expect(terms.map(({ word }) => word)).toEqual(["ledger", "bus"]);
    expect(unknown).toEqual(["zeppelin"]);
    expect(index.search(terms, 8).map(({ line }) => line)).toEqual([3, 2, 1]);
    expect(index.search(terms, 1)).toHaveLength(1);
  });

  test("the sentences chosen cover the terms instead of saying one thing twice", () => {
    const hits = [
      { ...passage("A lease is held by one worker at a time. The lease is held by exactly one worker."), score: 2 },
      { ...passage("An expired token changes nothing\nat all. It is refused by the whole server.", 10), score: 1 },
    ];
    const quotes = compose(
      [
        { term: stem("lease"), weight: 3 },
        { term: stem("refused"), weight: 3 },
      ],
      hits,
      2,
    );
    expect(quotes.map(({ text }) => text)).toEqual([
      expect.stringContaining("lease"),
      "It is refused by the whole server.",
    ]);
    expect(quotes[1]!.line).toBe(11);
  });

  test("every sentence of the project's own documents is found at its line, and a false quote is found out", () => {
    const quotes = readCorpus(root)
      .passages.flatMap(sentences)
      .map((sentence) => ({ ...sentence, score: 1 }));
    expect(quotes.length).toBeGreaterThan(500);
    checkQuotes(root, quotes);
    expect(() => checkQuotes(root, [{ ...quotes[0]!, text: "Nobody ever wrote this." }])).toThrow("does not say");
    expect(() => checkQuotes(root, [{ ...quotes[0]!, line: quotes[0]!.line + 1 }])).toThrow("does not say");
  });

  test("the sentence that the others are most like ranks highest, and a summary keeps the order of the text", () => {
    const text = [
      "A lease ends.",
      "The server takes the lease of a task.",
      "Nobody drinks tea.",
      "A task has a lease on a server.",
    ];
    const ranks = rank(text);
    expect(ranks.indexOf(Math.max(...ranks))).not.toBe(2);
    expect(ranks[2]).toBe(Math.min(...ranks));
    expect(summarise(text, 2)).toBe("The server takes the lease of a task. A task has a lease on a server.");
  });

  test("a review tells how much of a question is spoken of, and what is not", () => {
    const quotes = [{ text: "Leases end with the server." }];
    expect(review({ question: "When does a lease end?", quotes })).toMatchObject({ verdict: "answered", missing: [] });
    expect(review({ question: "Who drinks tea with a lease?", quotes })).toMatchObject({
      verdict: "open",
      missing: ["drinks", "tea"],
    });
  });

  test("text is broken at blanks and never beyond the width", () => {
    expect(wrap("one two three four", 9)).toEqual(["one two", "three", "four"]);
  });
});

describe("a scenario's checks", () => {
  const fail = (reason: string) => {
    const value = { reason, domain: "moltwire", metadata: { policy_ids: "p" } };
    const details = [{ desc: ErrorInfoSchema, value }];
    return Promise.reject(new ConnectError("no", Code.PermissionDenied, undefined, details));
  };

  test("find out what is otherwise than it should be, and say both", () => {
    same("the figures", [1n, "a"], [1n, "a"]);
    expect(() => same("the figures", [1n], [2n])).toThrow('the figures: it is ["1"] and should be ["2"]');
    expect(() => claim(false, "it is not so")).toThrow("it is not so");
  });

  test("take no other refusal for the one that should come, and no call that passes", async () => {
    const { metadata } = await refused("POLICY_DENIED", fail("POLICY_DENIED"));
    expect(metadata).toEqual({ policy_ids: "p" });
    await expect(refused("POLICY_DENIED", fail("NO_CAPABLE_AGENT"))).rejects.toThrow(
      "should be POLICY_DENIED and is NO_CAPABLE_AGENT",
    );
    await expect(refused("POLICY_DENIED", Promise.resolve())).rejects.toThrow("passed");
    await expect(refused("POLICY_DENIED", Promise.reject(new Error("lost")))).rejects.toThrow("lost");
  });
});

/** Whether a process runs. One that has ended and that nobody has asked after yet does not. */
function isUp(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return !existsSync("/proc/self/stat") || !/\) Z /.test(readFileSync(`/proc/${pid}/stat`, "utf8"));
  } catch {
    return false;
  }
}
