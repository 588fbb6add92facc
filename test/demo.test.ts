import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { createServer as createHttpServer } from "node:http";
import type { AddressInfo } from "node:net";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { create } from "@bufbuild/protobuf";
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
import { buildIndex, stem } from "../clients/demo/search.ts";
import { TraceEventKind, TraceEventSchema } from "../gen/moltwire/bus/v1/trace_pb.ts";

const root = join(import.meta.dirname, "..");
const node = join(root, "node_modules/.bin/node");
const maxDemoMs = 25_000;

describe("the demo, run as a user runs it", () => {
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
      timeout: maxDemoMs,
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

  test("it answers its question from the project's own files in four tasks of one trace, and leaves nothing behind", async () => {
    const began = performance.now();
    const { ended, text } = demo();
    expect(await ended, text()).toBe(0);
    expect(performance.now() - began).toBeLessThan(15_000);

    const steps =
      "researcher reviewer server organisation contracts agents live.trace outline search compose review quotes trace";
    for (const step of steps.split(" ")) expect(text()).toMatch(new RegExp(`^✔ ${step} +[\\d.]+ m?s  \\S`, "m"));
    expect(text()).not.toContain("✘");

    const sources = [...text().matchAll(/^ {4}(\S+\.(?:proto|md)):(\d+)/gm)];
    expect(sources.length).toBeGreaterThan(0);
    for (const [, source, line] of sources) {
      expect(readFileSync(join(root, source!), "utf8").split("\n").length).toBeGreaterThanOrEqual(Number(line));
    }
    for (const contract of ["outline", "search", "compose"]) {
      expect(text()).toMatch(new RegExp(`─ research/${contract}  COMPLETED  .*planner → researcher`));
    }
    expect(text()).toMatch(/─ research\/review {2}COMPLETED {2}.*planner → reviewer/);
    expect(flat(text())).toMatch(
      /✔ review .* streamed in \d+ pieces?; [1-9]\d* tokens read, [1-9]\d* written by extract-1/,
    );
    expect(text()).toMatch(/^ {4}extract-1 {2}http:\S+, a stand-in that ranks sentences$/m);
    expect(text()).toMatch(/^trace [0-9a-f]{32} {2}4 tasks · \d+ steps/m);
    expect(text()).toMatch(/^Off in this demo: encryption at rest/m);

    expect(text()).not.toContain("\u001b");
    expect(
      Math.max(
        ...text()
          .split("\n")
          .map((line) => line.length),
      ),
    ).toBeLessThanOrEqual(100);
    expect(pidsIn(text())).toHaveLength(3);
    for (const pid of pidsIn(text())) expect(isUp(pid)).toBe(false);
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
    const { ended, text } = demoWith({ OPENAI_BASE_URL: baseUrl, OPENAI_API_KEY: key, OPENAI_MODEL: "other-model" });
    expect(await ended, text()).toBe(0);
    server.close();
    expect(asked).toEqual([`Bearer ${key}`]);
    expect(text()).toContain(`    other-model  ${baseUrl}\n`);
    expect(text()).not.toContain("stand-in");
    expect(text()).not.toContain(key);
    expect(pidsIn(text())).toHaveLength(2);
  });

  test("another question gets another answer", async () => {
    const { ended, text } = demo("--question", "How does a client go on with a stream after a lost connection?");
    expect(await ended, text()).toBe(0);
    expect(text()).toContain("cursor");
    expect(text()).toMatch(/^ {4}proto\/moltwire\/.*_service\.proto:\d+/m);
  });

  test("a question without a word of the documents fails at the step that finds out, with the agent's own words", async () => {
    const { ended, text } = demo("--question", "xyzzy plugh?");
    expect(await ended).toBe(1);
    expect(flat(text())).toMatch(
      / ✘ outline [\d.]+ m?s ADAPTER_ERROR: .*the documents have no word of the question fix: /,
    );
    expect(text()).toContain('Failed at the step "outline".');
    expect(readdirSync(folder)).toEqual([]);
  });

  test("a researcher that dies fails the first task, and the demo says which step and who died", async () => {
    const { ended, text, says } = demo();
    const [, pid] = await says(/✔ researcher .* process (\d+) at/);
    process.kill(Number(pid), "SIGKILL");
    expect(await ended).toBe(1);
    expect(text()).toMatch(/^✘ outline .*AGENT_UNREACHABLE: /m);
    expect(text()).toMatch(/^ +trace [0-9a-f]{32}$/m);
    expect(text()).toContain("Note: the researcher ended with SIGKILL.");
    for (const each of pidsIn(text())) expect(isUp(each)).toBe(false);
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
    expect(pidsIn(text())).toHaveLength(3);
    for (const pid of pidsIn(text())) expect(isUp(pid)).toBe(false);
    expect(readdirSync(folder)).toEqual([]);
  });

  test("when the reader of its output goes, everything goes with it", async () => {
    const { child, ended, text, says } = demo();
    await says(/✔ server /);
    child.stdout.destroy();
    expect(await ended).toBe(0);
    expect(pidsIn(text())).toHaveLength(3);
    for (const pid of pidsIn(text())) await vi.waitFor(() => expect(isUp(pid)).toBe(false), 5_000);
    expect(readdirSync(folder)).toEqual([]);
  });

  test("--keep leaves a server up that takes the printed call, and keeps its data after Ctrl-C", async () => {
    const { child, ended, text, says } = demo("--keep", "--question", "Whose data can an organisation's key read?");
    await says(/-d '.*'\n/);
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

  test("an empty question is refused before anything starts", async () => {
    const { ended, text } = demo("--question", "  ");
    expect(await ended).toBe(2);
    expect(text()).toMatch(/^✘ USAGE {2}--question/);
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

/** Whether a process runs. One that has ended and that nobody has asked after yet does not. */
function isUp(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return !existsSync("/proc/self/stat") || !/\) Z /.test(readFileSync(`/proc/${pid}/stat`, "utf8"));
  } catch {
    return false;
  }
}
