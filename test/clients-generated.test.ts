import { globSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { DescMessage } from "@bufbuild/protobuf";
import { expect, test } from "vitest";
import { AgentRuntimeService } from "../gen/moltwire/agent/v1/agent_runtime_service_pb.ts";
import { methodName } from "../src/rpc/access.ts";
import { services } from "../src/services.ts";

const root = join(import.meta.dirname, "..");
/** Those of the server, and of agents that it calls. */
const methods = new Set(
  [...services, AgentRuntimeService].flatMap((service) => service.methods).map((method) => methodName(method)),
);
/** What is generated or built lies there too, where somebody made it. */
const isMade = /\/dist\/|clients\/go\/gen\/|_pb2|reason[-_]errors|\/services\.(py|go)$|moltwire\/[a-z]+\/v1\//;
const files = globSync("clients/**/*.{ts,tsx,py,go}", { cwd: root })
  .filter((file) => !isMade.test(file))
  .map((file) => ({ file, text: readFileSync(join(root, file), "utf8") }));
const inClients = files.filter(({ file }) => /^clients\/(typescript|python|go|cli)\//.test(file));

/** Every message that a method takes or gives. */
const messages = new Set<string>();
const note = ({ name, fields }: DescMessage) => {
  if (messages.has(name)) return;
  messages.add(name);
  for (const { message } of fields) if (message) note(message);
};
for (const { input, output } of services.flatMap((service) => service.methods)) [input, output].forEach(note);

/** What people handle, and what only has the name of a message: the piece of work in the hands of a handler, what it throws, a profile of the command line, a value of an error. */
const notMessages = [
  "clients/cli/profiles.ts: Profile",
  "clients/cli/starters.ts: Agent",
  "clients/go/lease.go: TaskError",
  "clients/go/serve.go: Task",
  "clients/go/work.go: Job",
  "clients/python/src/moltwire/lease.py: TaskError",
  "clients/typescript/generate-errors.ts: Value",
  "clients/typescript/lease.ts: TaskError",
];

test("no client writes a message of the protocol by hand", () => {
  const written =
    /^(?:export )?(?:type (\w+)(?:<.*>)? = (?:Readonly<)?\{|interface (\w+)|class (\w+)\b|type (\w+) struct)/gm;
  const found = inClients.flatMap(({ file, text }) =>
    [...text.matchAll(written)].flatMap(([, ...names]) => {
      const name = names.find((one) => one !== undefined)!;
      return messages.has(name) ? [`${file}: ${name}`] : [];
    }),
  );
  expect(messages.size).toBeGreaterThan(500);
  expect(found.toSorted()).toEqual(notMessages);
});

test("no client calls a method by a path written by hand, and every path that a client shows is a method's", () => {
  // `init` writes an agent that has no client, and calls by HTTP.
  const shows = new Set(["clients/cli/starters.ts"]);
  for (const { file, text } of files)
    for (const [line, path] of text.matchAll(/^.*?\b(moltwire\.\w+\.v\d+\.\w+Service\/\w+).*$/gm)) {
      expect(methods, `${file}: ${path}`).toContain(path);
      const isComment = /^\s*(\/\/|\/?\*|"""|#)/.test(line);
      if (inClients.some((one) => one.file === file) && !shows.has(file))
        expect([file, line, isComment]).toEqual([file, line, true]);
    }
});
