import { execFile } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Command } from "commander";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { commandLine } from "../clients/cli/commands.ts";
import { isGenerated } from "../clients/cli/generated.ts";
import { BillingPeriod } from "../gen/moltwire/exchange/v1/listing_pb.ts";
import { Pattern } from "../gen/moltwire/lab/v1/scenario_pb.ts";
import { parseMasterKey } from "../src/vault/master-key.ts";
import { contract, echoEndpoint } from "./bus-fixtures/bus.ts";
import { cleanEnv, commandsAt, commandsIn, main, node } from "./cli-process.ts";
import { market } from "./exchange-fixtures/listing.ts";
import { start, type World } from "./harness.ts";

const folder = mkdtempSync(join(tmpdir(), "moltwire-cli-json-"));
let world: World;
let commands: ReturnType<typeof commandsAt>;
const alone = commandsIn(folder, "");

/** Another server, for the commands about peers. */
let second: World | undefined;
beforeAll(async () => {
  world = await start("sqlite", { masterKeys: [parseMasterKey(randomBytes(32).toString("base64"))] });
  commands = commandsAt(world.url, world.operatorKey, { XDG_CONFIG_HOME: join(folder, "config") });
});
afterAll(async () => {
  await Promise.all([commands.stopAll(), alone.stopAll()]);
  await world[Symbol.asyncDispose]();
  await second?.[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true, force: true });
});

/** Every command that does something, by its words. */
function commandsUnder(command: Command, words: readonly string[] = []): [string, Command][] {
  return command.commands.flatMap((each): [string, Command][] => {
    const path = [...words, each.name()];
    return each.commands.length > 0 ? commandsUnder(each, path) : [[path.join(" "), each]];
  });
}
const all = commandsUnder(commandLine());
/** Those made from descriptors are one code for all: cli-methods.test.ts tries it. */
const written = all.filter(([, command]) => !isGenerated(command));

/** A JSON document, or one on each line. */
function parseAll(text: string): unknown[] {
  try {
    return [JSON.parse(text)];
  } catch {
    return text
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line));
  }
}

/** What earlier commands have made. */
const made: Record<string, string> = {};
const keep = (name: string, id: unknown): void => void (made[name] = String(id));
const file = join(folder, "all.backup");

type Said = Record<string, Record<string, unknown>>;
/** A command's arguments, in an order in which each finds what it needs; what is kept of its answer; and what it ends with. */
type Run = readonly [
  args: () => readonly string[] | Promise<readonly string[]>,
  keeps?: ((first: Said) => void) | undefined,
  code?: number,
  stdin?: () => string,
];

const runs: Readonly<Record<string, Run>> = {
  "agent register": [() => ["worker", "--capability", "say", "--endpoint", "echo"]],
  "agent list": [() => []],
  "agent get": [() => ["worker"]],
  "agent update": [() => ["worker", "--description", "says"]],
  "contract register": [() => ["say", "1.0.0", "--approval"]],
  "contract list": [() => []],
  "contract get": [() => ["say"]],
  "contract check": [() => ["say", "--input", "{}"]],
  submit: [
    () => ["say", "1", "--no-wait"],
    ({ task }) => {
      keep("task", task!.taskId);
      keep("trace", task!.traceId);
    },
  ],
  "task list": [() => []],
  "task get": [() => [made.task!]],
  "task cancel": [() => [made.task!]],
  "task watch": [() => [made.task!], undefined, 1],
  "trace list": [() => []],
  "trace get": [() => [made.trace!]],
  "trace tail": [() => ["--from-start", "--count", "2"]],
  "billing top-up": [() => ["5"]],
  "billing transfer": [() => ["1", "--to", "worker"]],
  "billing balance": [() => []],
  "billing transactions": [() => []],
  "billing export": [() => []],
  "market post": [
    () => ["write it", "2", "--category", "writing", "--dispute-window", "1h"],
    ({ task }) => keep("offer", task!.taskId),
  ],
  "market list": [() => []],
  "market get": [() => [made.offer!]],
  "market claim": [() => [made.offer!, "--agent", "worker"]],
  "market deliver": [() => [made.offer!, '{"it":1}', "--agent", "worker"]],
  "market review": [() => [made.offer!, "--reject", "--reason", "too short"]],
  "market dispute": [() => [made.offer!, "it is not", "--agent", "worker"]],
  "market settle": [() => [made.offer!, "1"]],
  "market cancel": [
    async () => {
      const { task } = await world.operator.market.postTask({ title: "no", category: "none", rewardMicros: 1n });
      return [task!.taskId];
    },
  ],
  "listing publish": [
    () => ["--offer", '{"title":"Say","category":"talk","contractId":"say","pricing":{"requestMicros":"5"}}'],
    ({ listing }) => keep("own", listing!.listingId),
  ],
  "listing update": [
    () => [
      made.own!,
      "--offer",
      '{"title":"Say it","category":"talk","contractId":"say","pricing":{"requestMicros":"6"}}',
    ],
  ],
  "listing get": [() => [made.own!]],
  "listing search": [() => ["--text", "say"]],
  "listing categories": [() => []],
  "listing unpublish": [() => [made.own!]],
  "listing invoke": [
    async () => {
      const plan = {
        planId: "daily",
        period: BillingPeriod.DAY,
        priceMicros: 7n,
        includedRequests: 2n,
        overageMicros: 1n,
      };
      const { listingId } = await market(world, { offer: { pricing: { requestMicros: 1n }, plans: [plan] } });
      keep("listing", listingId);
      return [listingId, "1", "--max-price", "5"];
    },
  ],
  "subscription create": [
    () => [made.listing!, "daily"],
    ({ subscription }) => keep("subscription", subscription!.subscriptionId),
  ],
  "subscription list": [() => []],
  "subscription cancel": [() => [made.subscription!]],
  "review create": [() => [made.listing!, "4"], ({ review }) => keep("review", review!.reviewId)],
  "review list": [() => [made.listing!]],
  "review respond": [
    async () => {
      const { listing } = await world.operator.catalog.getListing({ listingId: made.listing! });
      return [made.review!, "thank you", "--org", listing!.orgId];
    },
  ],
  "billing earnings": [
    async () => {
      const { listing } = await world.operator.catalog.getListing({ listingId: made.listing! });
      return ["--org", listing!.orgId];
    },
  ],
  "ledger verify": [() => []],
  "lab create": [() => ["CONSENSUS", "2"], ({ scenario }) => keep("scenario", scenario!.scenarioId)],
  "lab list": [() => []],
  "lab run": [() => [made.scenario!]],
  "lab watch": [() => [made.scenario!]],
  "lab results": [() => [made.scenario!]],
  "lab cancel": [
    async () => {
      const [wish, scenarios] = [{ pattern: Pattern.LOAD_BALANCING, agentCount: 20 }, world.operator.scenarios];
      const { scenario } = await scenarios.createScenario(wish);
      await scenarios.runScenario({ scenarioId: scenario!.scenarioId });
      return [scenario!.scenarioId];
    },
  ],
  "contract deprecate": [() => ["say", "1.0.0"]],
  "agent delete": [() => ["worker"]],
  "org create": [() => ["acme"], ({ organization }) => keep("org", organization!.orgId)],
  "org list": [() => []],
  "org get": [() => [made.org!]],
  "grant create": [() => [made.org!, "--capability", "say"], ({ grant }) => keep("grant", grant!.grantId)],
  "grant list": [() => []],
  "grant get": [() => [made.grant!]],
  "grant update": [() => [made.grant!, "--tokens", "9"]],
  "grant accept": [() => [made.grant!, "--org", made.org!]],
  "grant suspend": [() => [made.grant!]],
  "grant resume": [() => [made.grant!]],
  "grant usage": [() => [made.grant!]],
  "grant revoke": [() => [made.grant!]],
  "grant decline": [
    async () => {
      const subject = { case: "capability", value: "say" } as const;
      const { grant } = await world.operator.grants.createGrant({ granteeOrgId: made.org!, subject });
      return [grant!.grantId, "--org", made.org!];
    },
  ],
  "gateway submit": [
    async () => {
      const [doing, { organization }] = [await world.org(), await world.operator.organizations.getOrganization({})];
      const contractId = await contract(doing);
      await doing.agent({ capabilities: [contractId], endpoint: echoEndpoint });
      const subject = { case: "contractId", value: contractId } as const;
      const { grant } = await doing.admin.grants.createGrant({ granteeOrgId: organization!.orgId, subject });
      await world.operator.grants.acceptGrant({ grantId: grant!.grantId });
      return [doing.orgId, contractId, "1"];
    },
    ({ task }) => keep("trace", task!.traceId),
  ],
  "gateway list": [() => []],
  "gateway status": [() => [made.trace!]],
  "peer identity": [() => []],
  "peer add": [
    async () => {
      second = await start("sqlite");
      const doing = await second.org();
      const [here, there] = [world, second].map(({ operator }) => operator.peers.getIdentity({}));
      const own = (await here)!.identity!;
      const other = (await there)!.identity!;
      const publicKeys = own.keys.map(({ publicKey }) => publicKey);
      await second.operator.peers.addPeer({ name: "first", baseUrl: world.url, audience: own.audience, publicKeys });
      const key = Buffer.from(other.keys[0]!.publicKey).toString("base64");
      return ["second", second.url, "--audience", other.audience, "--key", key, "--remote-org", doing.orgId];
    },
    ({ peer }) => keep("peer", peer!.peerId),
  ],
  "peer list": [() => []],
  "peer sync": [() => [made.peer!]],
  "peer rotate": [() => []],
  "peer remove": [() => [made.peer!]],
  "audit list": [() => []],
  "audit head": [() => []],
  "audit export": [() => [join(folder, "audit.ndjson")]],
  "audit verify": [() => [join(folder, "audit.ndjson")]],
  "admin set-password": [() => [], undefined, 0, () => "a password of some length\n"],
  "org update": [() => [made.org!, "--disable"]],
  "key create": [() => ["--name", "told"], ({ apiKey }) => keep("key", apiKey!.keyId)],
  "key list": [() => ["--prefix", made.key!.slice(0, 10)]],
  "key get": [() => [made.key!]],
  "key update": [() => [made.key!, "--allow-ip", "127.0.0.0/8", "--allow-ip", "::1", "--rate", "600"]],
  "key rotate": [() => [made.key!]],
  "key revoke": [() => [made.key!]],
  status: [() => []],
  doctor: [() => []],
  "vault generate-key": [() => []],
  "vault status": [() => []],
  "vault rotate": [() => []],
  "vault drop": [() => [made.org!]],
  backup: [() => [file]],
  restore: [() => [file, "--data", join(folder, "restored")]],
  migrate: [() => ["--from", join(folder, "restored"), "--to", join(folder, "migrated")]],
  init: [() => [join(folder, "my-agent")]],
  login: [() => [], undefined, 0, () => `${world.operatorKey}\n`],
  "profile list": [() => []],
  logout: [() => []],
  completion: [() => ["bash"]],
  help: [() => ["task", "list"]],
};
/** Two go on until they are stopped, one takes its time. */
const apart = ["server", "demo", "dev"];
const maxDemoMs = 300_000;

describe("--json", () => {
  test("is an option of every command", () => {
    for (const [name, command] of all)
      expect(
        command.options.map(({ long }) => long),
        name,
      ).toContain("--json");
  });

  test("is tried with every command that was written", () => {
    expect([...Object.keys(runs), ...apart].toSorted()).toEqual(written.map(([name]) => name).toSorted());
  });

  test.each(Object.entries(runs))(
    "lets `%s` write JSON and nothing else",
    async (name, [args, keeps, code = 0, stdin = () => ""]) => {
      const ended = await commands.moltwire([...name.split(" "), ...(await args()), "--json"], stdin());
      expect([ended.code, ended.stderr]).toEqual([code, expect.not.stringContaining("error")]);
      const said = parseAll(ended.stdout);
      expect(said.length).toBeGreaterThan(0);
      for (const each of said) expect(each).toBeTypeOf("object");
      keeps?.(said[0] as Said);
    },
  );

  test("lets `server` tell where it listens and the operator's key as a line of JSON", async () => {
    const server = alone.start(
      ["server", "--port", "0", "--data", join(folder, "fresh"), "--json"],
      {},
      undefined,
      300_000,
    );
    await server.says(/listening on/);
    server.child.kill("SIGTERM");
    const { code, stdout } = await server.ended;
    expect([code, JSON.parse(stdout)]).toEqual([
      0,
      { url: expect.stringMatching(/^http:/), encrypts: false, operatorKey: expect.stringMatching(/^mw_/) },
    ]);
  });

  test(
    "lets a demo tell each step, and at the end what held",
    async () => {
      const { code, stdout } = await alone.start(["--json", "demo", "--scenario", "policy"], {}, [main], maxDemoMs)
        .ended;
      const lines = parseAll(stdout) as Record<string, unknown>[];
      expect(code).toBe(0);
      expect(lines.map(({ step }) => step)).toEqual(expect.arrayContaining(["server", "organisation", "2 policy"]));
      for (const line of lines.slice(0, -1))
        expect(line).toEqual({
          step: expect.any(String),
          state: "ok",
          tookMs: expect.any(Number),
          proof: expect.any(String),
        });
      expect(lines.at(-1)).toMatchObject({
        scenarios: 1,
        failed: 0,
        traceIds: [expect.stringMatching(/^[0-9a-f]{32}$/)],
      });
    },
    maxDemoMs,
  );

  test.each([
    ["an option that there is not", ["task", "list", "--nothing"], 2, "USAGE"],
    ["a thing that is not there", ["key", "get", "key_nothing"], 4, "NOT_FOUND"],
    ["a file that is none", ["restore", "nowhere.backup"], 2, "USAGE"],
    ["a scenario that there is not", ["demo", "--scenario", "nine"], 2, "USAGE"],
  ])("tells of %s as JSON too, on standard error", async (_what, args, code, reason) => {
    const ended = await commands.moltwire([...args, "--json"]);
    expect([ended.code, ended.stdout]).toEqual([code, ""]);
    expect(JSON.parse(ended.stderr)).toMatchObject({ error: { reason, message: expect.any(String) } });
  });
});

describe("colours", () => {
  /** What a command writes to a terminal, which script(1) makes. */
  function onTerminal(args: readonly string[], env: NodeJS.ProcessEnv): Promise<string> {
    const { NO_COLOR: _no, FORCE_COLOR: _force, CI: _ci, ...rest } = cleanEnv();
    const line = [node, main, ...args].map((word) => `'${word}'`).join(" ");
    const options = {
      env: { ...rest, TERM: "xterm-256color", MOLTWIRE_URL: world.url, MOLTWIRE_API_KEY: world.operatorKey, ...env },
      timeout: 120_000,
    };
    const { promise, resolve } = Promise.withResolvers<string>();
    execFile("script", ["-qec", line, "/dev/null"], options, (_error, stdout) => resolve(stdout));
    return promise;
  }

  test.each([
    ["a table", ["org", "list"]],
    ["a refusal", ["agent", "get", "nobody"]],
    ["what is wrong with an argument", ["agent", "got"]],
  ])("are used for %s on a terminal, and not there when NO_COLOR is set", async (_what, args) => {
    const plain = await onTerminal(args, { NO_COLOR: "1" });
    const coloured = await onTerminal(args, {});
    expect(plain).not.toBe("");
    expect(plain).not.toContain("\u001b[");
    expect(coloured).toContain("\u001b[");
  });

  test("are not used where the output is no terminal", async () => {
    const { stdout } = await commands.moltwire(["org", "list"]);
    expect(stdout).toContain("ORGANISATION");
    expect(stdout).not.toContain("\u001b");
  });
});
