import { once } from "node:events";
import { readFileSync } from "node:fs";
import type { Socket } from "node:net";
import { createServer as createTls } from "node:tls";
import { brotliCompressSync, deflateSync, gzipSync, zstdCompressSync } from "node:zlib";
import fc from "fast-check";
import { describe, expect, onTestFinished, test } from "vitest";
import { isPublicAddress } from "../src/egress/address.ts";
import { parseAllow } from "../src/egress/allow.ts";
import { type Egress, type EgressOptions, type EgressResponse, openEgress } from "../src/egress/egress.ts";
import { EgressError } from "../src/egress/error.ts";
import type { EgressRequest } from "../src/egress/request.ts";
import { resolveByQuery, resolveBySystem } from "../src/egress/resolve.ts";
import { nameServer } from "./egress-fixtures/name-server.ts";
import { canary, closed, closedPort, hangUp, httpPeer, rawPeer, tcpPeer } from "./egress-fixtures/servers.ts";
import { loopbackSpellings, publicAddresses, specialAddresses } from "./egress-fixtures/spellings.ts";

const fixture = (name: string) => readFileSync(new URL(`./egress-fixtures/${name}`, import.meta.url), "utf8");

/** A resolver that knows these names and counts its calls; an answer may be a list per call. */
const names = (table: Record<string, readonly string[] | readonly (readonly string[])[]>) => {
  const asked: string[] = [];
  const resolve = async (host: string): Promise<readonly string[]> => {
    const answers = Object.hasOwn(table, host) ? table[host]! : undefined;
    if (!answers) throw Object.assign(new Error(`queryA ENOTFOUND ${host}`), { code: "ENOTFOUND" });
    const nth = asked.filter((name) => name === host).length;
    asked.push(host);
    const answer = answers[0];
    return typeof answer === "string"
      ? (answers as string[])
      : (answers[Math.min(nth, answers.length - 1)] as string[]);
  };
  return { resolve, asked };
};

/** No test asks real DNS. */
const open = (options: Partial<EgressOptions> = {}): Egress => {
  const egress = openEgress({ allow: [], resolve: names({}).resolve, ...options });
  onTestFinished(() => egress.close());
  return egress;
};

/** A way out that may reach the test's own servers, and no other loopback address. */
const openLocal = (options: Partial<EgressOptions> = {}): Egress => open({ allow: ["127.0.0.1"], ...options });

const call = (url: string, rest: Partial<EgressRequest> = {}): EgressRequest => ({
  url,
  method: "GET",
  headers: {},
  timeoutMs: 10_000,
  maxResponseBytes: 65_536,
  ...rest,
});

const failure = async (work: Promise<unknown>): Promise<EgressError> => {
  const error = await work.then(
    (value) => value,
    (reason: unknown) => reason,
  );
  if (!(error instanceof EgressError)) throw new Error("expected an EgressError", { cause: error });
  return error;
};

const text = (response: EgressResponse): string => new TextDecoder().decode(response.body);

describe("addresses", () => {
  test.each(specialAddresses)("%s is never public, neither checked nor called", async (address) => {
    expect(isPublicAddress(address)).toBe(false);
    const egress = open();
    const url = address.includes(":") ? `http://[${address}]/` : `http://${address}/`;
    expect(await failure(egress.check(url))).toMatchObject({ kind: "denied", sent: false });
    expect(await failure(egress.fetch(call(url)))).toMatchObject({ kind: "denied", sent: false });
  });

  test.each(publicAddresses)("%s is public", async (address) => {
    expect(isPublicAddress(address)).toBe(true);
    await open().check(address.includes(":") ? `http://[${address}]/` : `http://${address}/`);
  });

  test.each([
    "",
    "a",
    "01.1.1.1",
    "1.1.1",
    "134744072",
    "0x8.8.8.8",
    "2606:4700::1%eth0",
    "8.8.8.8/32",
    "[2606:4700::1]",
  ])("%j is not an address, so not a public one", (text) => expect(isPublicAddress(text)).toBe(false));

  test("no spelling of a loopback address reaches a server on it, at check or at call", async () => {
    const inside = await canary();
    const { resolve, asked } = names({});
    const egress = open({ resolve });
    for (const host of loopbackSpellings) {
      for (const url of [`http://${host}:${inside.port}/`, `http://${host}/`, `https://${host}:${inside.port}/`]) {
        expect(await failure(egress.check(url)), url).toMatchObject({ kind: "denied", sent: false });
        expect(await failure(egress.fetch(call(url))), url).toMatchObject({ kind: "denied", sent: false });
      }
    }
    expect(inside.sockets).toHaveLength(0);
    expect(asked).toEqual([]);
  });

  test("a private IPv4 address is refused however its numbers are written", async () => {
    const ranges = [
      [0x0a000000, 8],
      [0x64400000, 10],
      [0x7f000000, 8],
      [0xa9fe0000, 16],
      [0xac100000, 12],
      [0xc0a80000, 16],
      [0xe0000000, 4],
      [0xf0000000, 4],
    ] as const;
    const address = fc
      .tuple(fc.constantFrom(...ranges), fc.nat({ max: 0xffffffff }))
      .map(([[network, prefix], random]) => (network | (random & (0xffffffff >>> prefix))) >>> 0);
    const number = (value: number, radix: number) =>
      radix === 16 ? `0x${value.toString(16)}` : radix === 8 ? `0${value.toString(8)}` : String(value);
    const wide = (text: string) =>
      [...text].map((c) => (c > " " && c <= "~" ? String.fromCodePoint(c.codePointAt(0)! + 0xfee0) : c)).join("");
    const percent = (text: string) =>
      [...text].map((c) => `%${c.charCodeAt(0).toString(16).padStart(2, "0")}`).join("");
    const style = fc.record({
      parts: fc.integer({ min: 1, max: 4 }),
      radixes: fc.array(fc.constantFrom(8, 10, 16), { minLength: 4, maxLength: 4 }),
      disguise: fc.constantFrom(
        (t: string) => t,
        wide,
        percent,
        (t: string) => t.toUpperCase().replaceAll("0X", "0x"),
      ),
      dot: fc.constantFrom("", "."),
    });
    const egress = open();
    await fc.assert(
      fc.asyncProperty(address, style, async (value, { parts, radixes, disguise, dot }) => {
        const bytes = [value >>> 24, (value >>> 16) & 255, (value >>> 8) & 255, value & 255];
        const last = bytes.slice(parts - 1).reduce((sum, byte) => sum * 256 + byte, 0);
        const host = [...bytes.slice(0, parts - 1), last].map((part, i) => number(part, radixes[i]!)).join(".");
        const url = `http://${disguise(host)}${dot}/`;
        expect(await failure(egress.check(url)), url).toMatchObject({ kind: "denied" });
        expect(await failure(egress.fetch(call(url))), url).toMatchObject({ kind: "denied" });
      }),
      { numRuns: 2_000 },
    );
  });

  test.each([
    "ftp://example.com/",
    "file:///etc/passwd",
    "gopher://example.com/",
    "data:,x",
    "javascript:alert(1)",
    "ws://example.com/",
    "unix:/run/docker.sock",
    "http+unix://%2frun%2fdocker.sock/",
    "//example.com/",
    "/path",
    "",
    "http:",
    "http://",
    "http:///",
    "http:example.com",
    "http:/example.com",
    "http:///example.com/",
    "https:\\\\example.com",
    "http://example.com:0/",
    "http://example.com:65536/",
    "http://a..b/",
    "http://-a.example/",
    "http://exa$mple.com/",
    `http://${"a".repeat(64)}.example/`,
    `http://${"a.".repeat(127)}com/`,
    `http://example.com/${"a".repeat(2_048)}`,
    "http://user@example.com/",
    "http://:@example.com/",
    "http://@example.com/",
  ])("%s can neither be registered nor called", async (url) => {
    const egress = open({ resolve: async () => ["8.8.8.8"] });
    expect(await failure(egress.check(url))).toMatchObject({ kind: "denied" });
    expect(await failure(egress.fetch(call(url)))).toMatchObject({ kind: "denied" });
  });
});

describe("names", () => {
  test.each(specialAddresses)("a name that leads to %s is refused without saying where it leads", async (address) => {
    const egress = open({ resolve: names({ "evil.test": [address] }).resolve });
    const atCheck = await failure(egress.check("http://evil.test/"));
    const atCall = await failure(egress.fetch(call("http://evil.test/")));
    for (const error of [atCheck, atCall]) {
      expect(error).toMatchObject({ kind: "denied", sent: false });
      expect(error.message).not.toContain(address);
      expect(error.cause).toBeUndefined();
    }
  });

  test("one private address among public ones refuses the whole name", async () => {
    const egress = open({ resolve: names({ "mixed.test": ["8.8.8.8", "10.0.0.1", "1.1.1.1"] }).resolve });
    expect(await failure(egress.check("https://mixed.test/"))).toMatchObject({ kind: "denied" });
    expect(await failure(egress.fetch(call("https://mixed.test/")))).toMatchObject({ kind: "denied" });
  });

  test("an answer that is no address is refused", async () => {
    for (const answer of ["localhost", "127.1", "fe80::1%lo", "", "2606:4700::1%lo"]) {
      const egress = open({ resolve: async () => [answer] });
      expect(await failure(egress.fetch(call("http://odd.test/")))).toMatchObject({ kind: "denied" });
    }
  });

  test("a name that does not resolve can be registered, and is unreachable when called", async () => {
    const empty = open({ resolve: async () => [] });
    for (const egress of [open(), empty]) {
      await egress.check("https://later.test/hook");
      expect(await failure(egress.fetch(call("https://later.test/hook")))).toMatchObject({
        kind: "unreachable",
        sent: false,
        message: "the host name does not resolve",
      });
    }
  });

  test("a call resolves its name once and connects to the address that was checked", async () => {
    const outside = await httpPeer((_request, response) => response.end("outside"));
    const inside = await canary("127.0.0.2", outside.port);
    const { resolve, asked } = names({ "rebind.test": [["127.0.0.1"], ["127.0.0.2"]] });
    const egress = openLocal({ resolve });
    expect(text(await egress.fetch(call(`http://rebind.test:${outside.port}/`)))).toBe("outside");
    expect(asked).toEqual(["rebind.test"]);
    expect(inside.sockets).toHaveLength(0);
  });

  test("a name that was fine when registered and turned private since is refused when called", async () => {
    const inside = await canary("127.0.0.2");
    const { resolve, asked } = names({ "rebind.test": [["127.0.0.1"], ["127.0.0.2"]] });
    const egress = openLocal({ resolve });
    await egress.check(`http://rebind.test:${inside.port}/`);
    expect(await failure(egress.fetch(call(`http://rebind.test:${inside.port}/`)))).toMatchObject({ kind: "denied" });
    expect(asked).toHaveLength(2);
    expect(inside.sockets).toHaveLength(0);
  });

  test("a name that turns private while its connection is kept is refused once that connection is gone", async () => {
    const outside = await httpPeer((_request, response) => response.end("outside"));
    const inside = await canary("127.0.0.2", outside.port);
    const { resolve } = names({ "rebind.test": [["127.0.0.1"], ["127.0.0.2"]] });
    const egress = openLocal({ resolve });
    const url = `http://rebind.test:${outside.port}/`;
    await egress.fetch(call(url));
    await egress.fetch(call(url));
    expect(outside.sockets).toHaveLength(1);
    await hangUp(outside.sockets[0]!);
    expect(await failure(egress.fetch(call(url)))).toMatchObject({ kind: "denied", sent: false });
    expect(inside.sockets).toHaveLength(0);
  });

  test("of several checked addresses one that answers is found", async () => {
    const peer = await httpPeer((_request, response) => response.end("found"));
    const { resolve } = names({ "two.test": ["127.0.0.3", "127.0.0.1"] });
    const egress = open({ allow: ["127.0.0.0/8"], resolve });
    expect(text(await egress.fetch(call(`http://two.test:${peer.port}/`)))).toBe("found");
  });

  test("an open and a closed internal port give the same error, and neither is connected to", async () => {
    const inside = await canary();
    const shut = await closedPort();
    const { resolve } = names({ "inside.test": ["127.0.0.1"] });
    const egress = open({ resolve });
    for (const host of ["127.0.0.1", "inside.test", "localhost"]) {
      const [a, b] = await Promise.all(
        [inside.port, shut].map((port) => failure(egress.fetch(call(`http://${host}:${port}/`)))),
      );
      expect({ ...a, message: a!.message }).toEqual({ ...b, message: b!.message });
    }
    expect(inside.sockets).toHaveLength(0);
  });
});

describe("name servers", () => {
  const never = new AbortController().signal;

  test("are asked for IPv4 and IPv6 addresses; one kind is enough", async () => {
    const { address } = await nameServer({
      "both.test": ["8.8.8.8", "2001:4860:4860:0:0:0:0:8888"],
      "four.test": ["1.1.1.1", "1.0.0.1"],
      "six.test": ["fd00:0:0:0:0:0:0:1"],
      "none.test": [],
    });
    const resolve = resolveByQuery([address]);
    expect(await resolve("both.test", never)).toEqual(["8.8.8.8", "2001:4860:4860::8888"]);
    expect([...(await resolve("four.test", never))].sort()).toEqual(["1.0.0.1", "1.1.1.1"]);
    expect(await resolve("six.test", never)).toEqual(["fd00::1"]);
    await expect(resolve("none.test", never)).rejects.toMatchObject({ code: "ENODATA" });
    await expect(resolve("unknown.test", never)).rejects.toMatchObject({ code: "ENOTFOUND" });
  });

  test("a public address of one kind does not cover for a private one of the other", async () => {
    const { address } = await nameServer({ "mixed.test": ["8.8.8.8", "fd00:0:0:0:0:0:0:1"] });
    const egress = open({ resolve: resolveByQuery([address]) });
    expect(await failure(egress.check("https://mixed.test/"))).toMatchObject({ kind: "denied" });
  });

  test("that stay silent hold up only the calls that wait for them, and are given up with these", async () => {
    const server = await nameServer({ "quick.test": ["127.0.0.1"] }, ["silent.test"]);
    const peer = await httpPeer((_request, response) => response.end("ok"));
    const egress = openLocal({ resolve: resolveByQuery([server.address]) });
    const abort = new AbortController();
    const asked = server.asked();
    const stuck = Array.from({ length: 40 }, (_, port) =>
      failure(egress.fetch(call(`http://silent.test:${port + 1}/`, { signal: abort.signal }))),
    );
    await asked;
    expect(text(await egress.fetch(call(`http://quick.test:${peer.port}/`)))).toBe("ok");
    abort.abort();
    await expect(resolveByQuery([server.address])("silent.test", AbortSignal.timeout(20))).rejects.toMatchObject({
      code: "ECANCELLED",
    });
    expect((await Promise.all(stuck)).map(({ kind, sent }) => [kind, sent])).toEqual(
      Array(40).fill(["aborted", false]),
    );
  });

  test("are not needed by the machine's own look-up, which knows its hosts file", async () => {
    expect(await resolveBySystem("localhost", never)).toContain("127.0.0.1");
  });
});

describe("the operator's list", () => {
  const reach = async (allow: readonly string[], host: string, port?: number): Promise<string> => {
    const peer = await httpPeer((_request, response) => response.end("reached"));
    const { resolve } = names({ "hooks.internal": ["127.0.0.1"], "other.internal": ["127.0.0.1"] });
    const egress = open({ allow: allow.map((entry) => entry.replace("PORT", String(peer.port))), resolve });
    const url = `http://${host}:${port ?? peer.port}/`;
    const checked = await egress.check(url).then(
      () => "reached",
      (error: EgressError) => error.kind,
    );
    const called = await egress.fetch(call(url)).then(text, (error: EgressError) => error.kind);
    expect(called).toBe(checked);
    if (called === "denied") expect(peer.sockets).toHaveLength(0);
    return called;
  };

  test.each([
    ["127.0.0.1", "127.0.0.1", "reached"],
    ["127.0.0.1", "0x7f.1", "reached"],
    ["127.0.0.1", "localhost", "reached"],
    ["127.0.0.1", "hooks.internal", "reached"],
    ["127.0.0.1:PORT", "127.0.0.1", "reached"],
    ["127.0.0.1:PORT", "hooks.internal", "reached"],
    ["127.0.0.1:1", "127.0.0.1", "denied"],
    ["127.0.0.1:1", "hooks.internal", "denied"],
    ["127.0.0.0/8", "127.0.0.1", "reached"],
    ["0.0.0.0/0", "127.0.0.1", "reached"],
    ["10.0.0.0/8", "127.0.0.1", "denied"],
    ["127.0.0.2", "127.0.0.1", "denied"],
    ["hooks.internal", "hooks.internal", "reached"],
    ["Hooks.Internal.", "HOOKS.internal.", "reached"],
    ["hooks.internal:PORT", "hooks.internal", "reached"],
    ["hooks.internal:1", "hooks.internal", "denied"],
    ["hooks.internal", "other.internal", "denied"],
    ["hooks.internal", "127.0.0.1", "denied"],
    ["internal", "hooks.internal", "denied"],
    ["localhost", "localhost", "reached"],
    ["localhost", "LOCALHOST.", "reached"],
    ["localhost", "127.0.0.1", "denied"],
    ["localhost", "a.localhost", "denied"],
    ["a.localhost:PORT", "a.localhost", "reached"],
  ])("with %s on it, %s is %s", async (entry, host, outcome) => {
    expect(await reach([entry], host)).toBe(outcome);
  });

  test("localhost is only called at the address of it that is listed", async () => {
    const peer = await canary();
    const url = `http://localhost:${peer.port}/`;
    const egress = open({ allow: ["::1"] });
    await egress.check(url);
    expect(await failure(egress.fetch(call(url)))).toMatchObject({ kind: "unreachable", sent: false });
    expect(peer.sockets).toHaveLength(0);
  });

  test("a listed address is of no use to a name that also leads elsewhere", async () => {
    const { resolve } = names({ "mixed.test": ["127.0.0.1", "127.0.0.2"] });
    expect(await failure(openLocal({ resolve }).check("http://mixed.test/"))).toMatchObject({ kind: "denied" });
  });

  test("plain http can be kept for what is listed", async () => {
    const { resolve } = names({
      "public.test": ["8.8.8.8"],
      "hooks.internal": ["10.0.0.1"],
      "named.internal": ["10.9.9.9"],
    });
    const egress = open({ allow: ["10.0.0.1", "named.internal"], insecureHttp: "allow-listed", resolve });
    for (const url of [
      "http://hooks.internal/",
      "http://named.internal/",
      "http://10.0.0.1/",
      "https://public.test/",
    ]) {
      await egress.check(url);
    }
    for (const url of ["http://public.test/", "http://8.8.8.8/", "http://unknown.test/"]) {
      expect(await failure(egress.check(url)), url).toMatchObject({ kind: "denied" });
      expect(await failure(egress.fetch(call(url))), url).toMatchObject({ kind: "denied" });
    }
  });

  test("reads entries with blanks and gaps between them", () => {
    expect(parseAllow(" 10.0.0.0/8, ,hooks.internal:8080,[::1]:80 ,::1,fd00::/8,")).toEqual([
      "10.0.0.0/8",
      "hooks.internal:8080",
      "[::1]:80",
      "::1",
      "fd00::/8",
    ]);
    expect(parseAllow("")).toEqual([]);
  });

  test.each([
    "10.0.0.0/33",
    "10.0.0.0/",
    "10.0.0.0/-1",
    "10.0.0/8",
    "10.0.0.0/8/8",
    "10.0.0.0/8:80",
    "fd00::/129",
    "hooks.internal/8",
    "http://hooks.internal",
    "user@hooks.internal",
    "hooks.internal:0",
    "hooks.internal:65536",
    "hooks.internal:",
    "hooks.internal:http",
    "*.internal",
    "*",
    "127.1",
    "0x7f000001",
    "[::1",
    "[::1]x",
    "fe80::1%eth0",
    "a b",
    ":80",
  ])("refuses the entry %s by its name", (entry) => {
    expect(() => parseAllow(`10.0.0.0/8,${entry}`)).toThrow(`"${entry}"`);
    expect(() => openEgress({ allow: [entry] })).toThrow(`"${entry}"`);
  });
});

describe("the answer", () => {
  test("comes back whole: status, headers, bytes", async () => {
    const sent = Buffer.from(Array.from({ length: 70_000 }, (_, i) => i % 251));
    const peer = await httpPeer(async (request, response) => {
      const chunks: Buffer[] = [];
      for await (const chunk of request) chunks.push(chunk as Buffer);
      response.writeHead(418, { "x-one": "1", "set-cookie": ["a=1", "b=2"] });
      response.end(Buffer.concat(chunks));
    });
    const url = `http://127.0.0.1:${peer.port}/echo?q=%20#part`;
    const response = await openLocal().fetch(
      call(url, {
        method: "POST",
        body: new Uint8Array(sent.buffer, sent.byteOffset, sent.length),
        maxResponseBytes: 70_000,
      }),
    );
    expect(response).toMatchObject({ status: 418, truncated: false });
    expect(response.headers).toMatchObject({ "x-one": "1", "set-cookie": "a=1, b=2" });
    expect(Buffer.compare(response.body, sent)).toBe(0);
  });

  test.each([300, 301, 302, 303, 304, 307, 308])("%i is a failure and is not followed", async (status) => {
    const inside = await canary("127.0.0.2");
    const target = `http://127.0.0.2:${inside.port}/`;
    const peer = await httpPeer((_request, response) => response.writeHead(status, { location: target }).end());
    const error = await failure(openLocal().fetch(call(`http://127.0.0.1:${peer.port}/`)));
    expect(error).toMatchObject({ kind: "redirect", sent: true, status });
    expect(error.message).not.toContain("127.0.0.2");
    expect(peer.sockets).toHaveLength(1);
    expect(inside.sockets).toHaveLength(0);
  });

  test("a redirect in the head of the answer to another scheme or by a Refresh header goes nowhere", async () => {
    const inside = await canary("127.0.0.2");
    const peer = await rawPeer(
      `HTTP/1.1 200 OK\r\nrefresh: 0; url=http://127.0.0.2:${inside.port}/\r\nlocation: http://127.0.0.2:${inside.port}/\r\ncontent-length: 0\r\n\r\n`,
    );
    expect(await openLocal().fetch(call(`http://127.0.0.1:${peer.port}/`))).toMatchObject({ status: 200 });
    expect(inside.sockets).toHaveLength(0);
  });

  const bodies = {
    "announced by its length": `HTTP/1.1 200 OK\r\ncontent-length: 1001\r\n\r\n${"x".repeat(1_001)}`,
    "in chunks": `HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n${"1\r\nx\r\n".repeat(1_001)}0\r\n\r\n`,
    "until the connection closes": `HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n${"x".repeat(1_001)}`,
  };

  test.each(Object.entries(bodies))("a body one byte too long, %s, fails and closes the connection", async (_, raw) => {
    const peer = await rawPeer(raw);
    const request = call(`http://127.0.0.1:${peer.port}/`, { maxResponseBytes: 1_000 });
    expect(await failure(openLocal().fetch(request))).toMatchObject({ kind: "too-large", sent: true, status: 200 });
    await closed(peer.sockets[0]!);
  });

  test.each(Object.entries(bodies))("a body one byte too long, %s, can be cut instead", async (_, raw) => {
    const peer = await rawPeer(raw);
    const request = call(`http://127.0.0.1:${peer.port}/`, { maxResponseBytes: 1_000, onOverflow: "truncate" });
    const response = await openLocal().fetch(request);
    expect(response).toMatchObject({ status: 200, truncated: true });
    expect(text(response)).toBe("x".repeat(1_000));
    await closed(peer.sockets[0]!);
  });

  test("an endless body ends at the limit", async () => {
    let written = 0;
    const peer = await tcpPeer((socket) => {
      socket.once("data", () => {
        socket.write("HTTP/1.1 200 OK\r\n\r\n");
        const pour = () => {
          while (!socket.destroyed && (written += 65_536) && socket.write(Buffer.alloc(65_536))) {}
        };
        socket.on("drain", pour);
        pour();
      });
    });
    expect(await failure(openLocal().fetch(call(`http://127.0.0.1:${peer.port}/`)))).toMatchObject({
      kind: "too-large",
    });
    await closed(peer.sockets[0]!);
    expect(written).toBeLessThan(32 * 1_048_576);
  });

  test.each([
    ["one long header", `x: ${"a".repeat(20_000)}\r\n`],
    ["many headers", "x: aaaaaaaa\r\n".repeat(4_000)],
  ])("%s is too large", async (_, headers) => {
    const peer = await rawPeer(`HTTP/1.1 200 OK\r\n${headers}content-length: 0\r\n\r\n`);
    const error = await failure(openLocal().fetch(call(`http://127.0.0.1:${peer.port}/`)));
    expect(error).toMatchObject({ kind: "too-large", sent: true });
    await closed(peer.sockets[0]!);
  });

  test("trailers are limited like headers", async () => {
    const trailers = `x: ${"a".repeat(20_000)}\r\n`;
    const peer = await rawPeer(`HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n${trailers}\r\n`);
    const error = await failure(openLocal().fetch(call(`http://127.0.0.1:${peer.port}/`)));
    expect(error).toMatchObject({ kind: "too-large", sent: true });
  });

  const answering = (encoding: string, body: Uint8Array) =>
    httpPeer((_request, response) => response.writeHead(200, { "content-encoding": encoding }).end(body));

  test.each([
    ["gzip", gzipSync("plain")],
    ["X-Gzip", gzipSync("plain")],
    ["deflate", deflateSync("plain")],
    ["br", brotliCompressSync("plain")],
    ["zstd", zstdCompressSync("plain")],
    ["identity", Buffer.from("plain")],
  ])("content in %s, though not asked for, is read", async (encoding, body) => {
    const peer = await answering(encoding, body);
    expect(text(await openLocal().fetch(call(`http://127.0.0.1:${peer.port}/`)))).toBe("plain");
  });

  const bomb = Buffer.alloc(50 * 1_048_576);
  test.each([
    ["gzip", gzipSync(bomb)],
    ["br", brotliCompressSync(bomb, { params: { 1: 5 } })],
    ["zstd", zstdCompressSync(bomb)],
  ])("50 MiB in a few KB of %s is too large, and never in memory", async (encoding, body) => {
    expect(body.length).toBeLessThan(65_536);
    const peer = await answering(encoding, body);
    const egress = openLocal();
    const request = call(`http://127.0.0.1:${peer.port}/`);
    const before = process.memoryUsage().arrayBuffers;
    expect(await failure(egress.fetch(request))).toMatchObject({ kind: "too-large", sent: true, status: 200 });
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(16 * 1_048_576);
    expect(await egress.fetch({ ...request, onOverflow: "truncate" })).toMatchObject({
      status: 200,
      truncated: true,
      body: new Uint8Array(),
    });
  });

  test.each([
    ["an unknown encoding", "lzma", Buffer.from("x")],
    ["a stacked encoding", "gzip, gzip", gzipSync(gzipSync("x"))],
    ["an encoding named like an object's own", "constructor", Buffer.from("x")],
    ["damaged content", "gzip", Buffer.from("not gzip")],
    ["content cut short", "gzip", gzipSync("plain").subarray(0, 12)],
  ])("%s is a bad response", async (_, encoding, body) => {
    const peer = await answering(encoding, body);
    expect(await failure(openLocal().fetch(call(`http://127.0.0.1:${peer.port}/`)))).toMatchObject({
      kind: "bad-response",
      sent: true,
      status: 200,
    });
  });

  test.each([
    ["no HTTP at all", "220 mail.example ESMTP\r\n"],
    ["an upgrade nobody asked for", "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n"],
    ["two lengths", "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx"],
    ["a length and chunks", "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"],
  ])("%s is a bad response", async (_, raw) => {
    const peer = await rawPeer(raw);
    expect(await failure(openLocal().fetch(call(`http://127.0.0.1:${peer.port}/`)))).toMatchObject({
      kind: "bad-response",
      sent: true,
    });
  });

  test("headers named like an object's own are only headers", async () => {
    const peer = await rawPeer(
      "HTTP/1.1 200 OK\r\n__proto__: a\r\n__proto__: b\r\nconstructor: c\r\ncontent-length: 0\r\n\r\n",
    );
    const { headers } = await openLocal().fetch(call(`http://127.0.0.1:${peer.port}/`));
    expect(Object.entries(headers)).toEqual([
      ["__proto__", "a, b"],
      ["constructor", "c"],
      ["content-length", "0"],
    ]);
    expect(Object.getPrototypeOf(headers)).toBe(Object.prototype);
  });

  test("informational answers before the real one are passed over", async () => {
    const peer = await rawPeer(
      "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
    );
    expect(text(await openLocal().fetch(call(`http://127.0.0.1:${peer.port}/`)))).toBe("ok");
  });
});

describe("the request", () => {
  /** What the server reads, as text, when asked by these headers. */
  const head = async (rest: Partial<EgressRequest>): Promise<string> => {
    let received = "";
    const peer = await tcpPeer((socket) => {
      socket.on("data", (chunk) => {
        received += chunk;
        if (received.includes("\r\n\r\n")) socket.write("HTTP/1.1 204 No Content\r\n\r\n");
      });
    });
    await openLocal().fetch(call(`http://127.0.0.1:${peer.port}/`, rest));
    return received.toLowerCase().replaceAll(String(peer.port), "PORT");
  };

  test("carries the caller's headers, but none that belong to the connection", async () => {
    const sent = await head({
      method: "POST",
      body: "hello",
      headers: {
        "X-Mine": "1",
        Authorization: "Bearer t",
        Host: "internal.example",
        "Content-Length": "99",
        "Transfer-Encoding": "chunked",
        Connection: "close, X-Named",
        "X-Named": "2",
        Upgrade: "h2c",
        Expect: "100-continue",
        TE: "trailers",
        "Keep-Alive": "timeout=1",
        "Proxy-Authorization": "Basic x",
        "Accept-Encoding": "gzip",
      },
    });
    const [headers, body] = sent.split("\r\n\r\n");
    expect(body).toBe("hello");
    expect(headers!.split("\r\n").sort()).toEqual([
      "accept-encoding: identity",
      "authorization: bearer t",
      "connection: keep-alive",
      "content-length: 5",
      "host: 127.0.0.1:PORT",
      "post / http/1.1",
      "x-mine: 1",
    ]);
  });

  test.each([
    ["a line break in a value", { "x-a": "1\r\nx-b: 2" }],
    ["a bare line feed", { "x-a": "1\n" }],
    ["a NUL", { "x-a": "\0" }],
    ["a letter beyond Latin-1", { "x-a": "\u0101" }],
    ["a blank in a name", { "x a": "1" }],
    ["an empty name", { "": "1" }],
    ["a name twice", { "x-a": "1", "X-A": "2" }],
    ["too many headers", Object.fromEntries(Array.from({ length: 101 }, (_, i) => [`x-${i}`, "1"]))],
    ["too long headers", { "x-a": "a".repeat(40_000) }],
  ])("%s is refused before anything is sent", async (_, headers) => {
    const peer = await canary();
    const url = `http://127.0.0.1:${peer.port}/`;
    expect(await failure(openLocal().fetch(call(url, { headers })))).toMatchObject({ kind: "denied", sent: false });
    expect(peer.sockets).toHaveLength(0);
  });

  test.each(["CONNECT", "TRACE", "get", "GET / HTTP/1.1\r\n\r\n"])("the method %j is refused", async (method) => {
    const peer = await canary();
    const request = { ...call(`http://127.0.0.1:${peer.port}/`), method } as EgressRequest;
    expect(await failure(openLocal().fetch(request))).toMatchObject({ kind: "denied" });
    expect(peer.sockets).toHaveLength(0);
  });

  test("goes past the proxies of the environment", async () => {
    const proxy = await canary("127.0.0.2");
    const peer = await httpPeer((_request, response) => response.end("direct"));
    const variables = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "NODE_USE_ENV_PROXY"];
    const before = variables.map((name) => process.env[name]);
    onTestFinished(() => {
      variables.forEach((name, i) => {
        if (before[i] === undefined) delete process.env[name];
        else process.env[name] = before[i];
      });
    });
    for (const name of variables) process.env[name] = `http://127.0.0.2:${proxy.port}`;
    expect(text(await openLocal().fetch(call(`http://127.0.0.1:${peer.port}/`)))).toBe("direct");
    expect(proxy.sockets).toHaveLength(0);
  });
});

describe("time and interruption", () => {
  const dripping = (first: string, drop: string) =>
    tcpPeer((socket) => {
      socket.once("data", () => {
        socket.write(first);
        const timer = setInterval(() => socket.write(drop), 10);
        socket.once("close", () => clearInterval(timer));
      });
    });

  test.each([
    ["headers that never end", "HTTP/1.1 200 OK\r\n", "x: y\r\n", undefined],
    ["a body that never ends", "HTTP/1.1 200 OK\r\n\r\n", "x", 200],
    ["informational answers that never end", "HTTP/1.1 103 Hi\r\n\r\n", "HTTP/1.1 103 Hi\r\n\r\n", undefined],
    ["silence", "", "", undefined],
  ])("%s run into the call's time, and the connection is closed", async (_, first, drop, status) => {
    const peer = await dripping(first, drop);
    const request = call(`http://127.0.0.1:${peer.port}/`, { timeoutMs: 300, maxResponseBytes: 1_000_000 });
    expect(await failure(openLocal().fetch(request))).toMatchObject({ kind: "timeout", sent: true, status });
    await closed(await peer.connected(1));
  });

  test.each(["headers", "body"])(
    "aborting while waiting for the %s closes the server's side at once",
    async (stage) => {
      const peer = await rawPeer(stage === "body" ? "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx" : "");
      const abort = new AbortController();
      const result = failure(openLocal().fetch(call(`http://127.0.0.1:${peer.port}/`, { signal: abort.signal })));
      const socket = await peer.connected(1);
      await once(socket, "data");
      abort.abort();
      expect(await result).toMatchObject({ kind: "aborted", sent: true });
      await closed(socket);
    },
  );

  test("aborting during the TLS handshake closes the server's side, and nothing was sent", async () => {
    const peer = await tcpPeer((socket) => socket.resume());
    const abort = new AbortController();
    const result = failure(openLocal().fetch(call(`https://127.0.0.1:${peer.port}/`, { signal: abort.signal })));
    const socket = await peer.connected(1);
    abort.abort(new Error("the caller's own reason"));
    expect(await result).toMatchObject({ kind: "aborted", sent: false, message: "the call was aborted" });
    await closed(socket);
  });

  test("aborting during DNS, or before the call, sends nothing", async () => {
    const peer = await canary();
    const during = new AbortController();
    const resolve = () => {
      during.abort();
      return new Promise<never>(() => {});
    };
    const url = `http://slow.test:${peer.port}/`;
    const egress = openLocal({ resolve });
    expect(await failure(egress.fetch(call(url, { signal: during.signal })))).toMatchObject({
      kind: "aborted",
      sent: false,
    });
    const direct = call(`http://127.0.0.1:${peer.port}/`, { signal: AbortSignal.abort() });
    expect(await failure(egress.fetch(direct))).toMatchObject({ kind: "aborted", sent: false });
    expect(peer.sockets).toHaveLength(0);
  });

  test("closing ends running, waiting and later calls, and kept connections", async () => {
    const peer = await httpPeer((request, response) => {
      if (request.url === "/quick") response.end("ok");
    });
    const egress = openLocal({ maxConnectionsPerOrigin: 1 });
    const url = `http://127.0.0.1:${peer.port}`;
    await egress.fetch(call(`${url}/quick`));
    const running = failure(egress.fetch(call(`${url}/hang`)));
    const waiting = failure(egress.fetch(call(`${url}/quick`)));
    await once(peer.sockets[0]!, "data");
    await egress.close();
    expect(await running).toMatchObject({ kind: "aborted", sent: true });
    expect(await waiting).toMatchObject({ kind: "aborted", sent: false });
    expect(await failure(egress.fetch(call(`${url}/quick`)))).toMatchObject({ kind: "aborted", sent: false });
    await closed(peer.sockets[0]!);
    expect(peer.sockets).toHaveLength(1);
  });
});

describe("whether the request may have been received", () => {
  test("no, when the connection is refused", async () => {
    const error = await failure(openLocal().fetch(call(`http://127.0.0.1:${await closedPort()}/`)));
    expect(error).toMatchObject({ kind: "unreachable", sent: false });
    expect(error.message).not.toContain("127.0.0.1");
  });

  test("no, when connecting takes too long", async () => {
    const peer = await tcpPeer((socket) => socket.resume());
    const egress = openLocal({ connectTimeoutMs: 100 });
    expect(await failure(egress.fetch(call(`https://127.0.0.1:${peer.port}/`)))).toMatchObject({
      kind: "timeout",
      sent: false,
      message: "connecting took too long",
    });
    await closed(peer.sockets[0]!);
  });

  test("no, when DNS takes too long", async () => {
    const egress = openLocal({ connectTimeoutMs: 100, resolve: () => new Promise<never>(() => {}) });
    expect(await failure(egress.fetch(call("http://slow.test/")))).toMatchObject({ kind: "timeout", sent: false });
  });

  test("no, when the other side speaks no TLS, or hangs up on it", async () => {
    const plain = await rawPeer("HTTP/1.1 400 Bad Request\r\n\r\n");
    const rude = await tcpPeer((socket) => socket.destroy());
    for (const { port } of [plain, rude]) {
      const error = await failure(openLocal().fetch(call(`https://127.0.0.1:${port}/`)));
      expect(error).toMatchObject({ kind: "unreachable", sent: false });
    }
  });

  test("yes, when the connection is reset after the request was written", async () => {
    const peer = await tcpPeer((socket) => socket.once("data", () => socket.resetAndDestroy()));
    const request = call(`http://127.0.0.1:${peer.port}/`, { method: "POST", body: "x" });
    expect(await failure(openLocal().fetch(request))).toMatchObject({ kind: "unreachable", sent: true });
    expect(peer.sockets).toHaveLength(1);
  });

  test("yes, when the other side hangs up in the middle of its answer", async () => {
    const peer = await tcpPeer((socket) =>
      socket.once("data", () => socket.end("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx")),
    );
    expect(await failure(openLocal().fetch(call(`http://127.0.0.1:${peer.port}/`)))).toMatchObject({
      kind: "bad-response",
      sent: true,
      status: 200,
    });
  });

  test("yes, when a kept connection is closed on receipt of the next request, which is not repeated", async () => {
    const requests: string[] = [];
    const peer = await tcpPeer((socket) => {
      socket.on("data", (chunk) => {
        requests.push(String(chunk).split(" ")[1]!);
        if (requests.length === 1) socket.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        else socket.destroy();
      });
    });
    const egress = openLocal();
    const url = `http://127.0.0.1:${peer.port}`;
    await egress.fetch(call(`${url}/1`));
    for (const method of ["GET", "POST"] as const) {
      const error = await failure(egress.fetch(call(`${url}/2`, { method })));
      expect(error).toMatchObject({ kind: "unreachable", sent: true });
      expect(requests).toEqual(["/1", ...Array(requests.length - 1).fill("/2")]);
    }
    expect(requests).toEqual(["/1", "/2", "/2"]);
  });
});

describe("TLS", () => {
  const tlsPeer = async (): Promise<{ port: number; requests: () => number }> => {
    let requests = 0;
    const server = createTls(
      { cert: fixture("endpoint.cert.pem"), key: fixture("endpoint.key.pem") },
      (socket: Socket) => {
        socket.on("error", () => {});
        socket.on("data", () => {
          requests += 1;
          socket.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        });
      },
    );
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    onTestFinished(() => void server.close());
    return { port: (server.address() as { port: number }).port, requests: () => requests };
  };
  const { resolve } = names({ "endpoint.test": ["127.0.0.1"], "impostor.test": ["127.0.0.1"] });

  test("a trusted certificate for the name or the address is accepted, at the pinned address", async () => {
    const { port } = await tlsPeer();
    const egress = openLocal({ resolve, ca: fixture("endpoint.cert.pem") });
    for (const host of ["endpoint.test", "ENDPOINT.test.", "127.0.0.1"]) {
      expect(text(await egress.fetch(call(`https://${host}:${port}/`)))).toBe("ok");
    }
  });

  test("an untrusted certificate, or one for another name, gets no request", async () => {
    const { port, requests } = await tlsPeer();
    const strict = openLocal({ resolve });
    const trusting = openLocal({ resolve, ca: fixture("endpoint.cert.pem") });
    for (const [egress, host] of [
      [strict, "endpoint.test"],
      [trusting, "impostor.test"],
    ] as const) {
      const error = await failure(egress.fetch(call(`https://${host}:${port}/`)));
      expect(error).toMatchObject({ kind: "unreachable", sent: false });
      expect(error.message).toMatch(/^the TLS handshake failed \([A-Z_]+\)$/);
    }
    expect(requests()).toBe(0);
  });
});

describe("connections", () => {
  test.each([
    ["a server that announces how long it keeps them", "keep-alive: timeout=60\r\n"],
    ["a server that does not", ""],
  ])("to %s are kept and used again, and closed when idle", async (_, header) => {
    const peer = await rawPeer(`HTTP/1.1 200 OK\r\nconnection: keep-alive\r\n${header}content-length: 2\r\n\r\nok`);
    const egress = openLocal({ idleMs: 100 });
    for (let i = 0; i < 30; i += 1) await egress.fetch(call(`http://127.0.0.1:${peer.port}/${i}`));
    expect(peer.sockets).toHaveLength(1);
    await closed(peer.sockets[0]!);
    await egress.fetch(call(`http://127.0.0.1:${peer.port}/`));
    expect(peer.sockets).toHaveLength(2);
  });

  test("closed by the other side while kept are replaced without an error", async () => {
    const peer = await httpPeer((_request, response) => response.end("ok"));
    const egress = openLocal();
    for (let i = 1; i <= 5; i += 1) {
      await egress.fetch(call(`http://127.0.0.1:${peer.port}/`, { method: "POST", body: "x" }));
      await hangUp(peer.sockets.at(-1)!);
    }
    expect(peer.sockets).toHaveLength(5);
  });

  test("found closed just before a request is written are replaced too, as nothing was sent", async () => {
    const peer = await httpPeer((_request, response) => response.end("ok"));
    const egress = openLocal();
    for (let i = 1; i <= 5; i += 1) {
      await egress.fetch(call(`http://127.0.0.1:${peer.port}/`, { method: "POST", body: "x" }));
      // In a timer's turn the loop reads sockets, and so learns of the close, before it runs the immediate that writes.
      await new Promise((resolve) => setTimeout(resolve, 0));
      peer.sockets.at(-1)!.destroy();
    }
    expect(peer.sockets).toHaveLength(5);
  });

  test("kept open are closed with the way out", async () => {
    const peer = await rawPeer("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    const egress = openLocal();
    await egress.fetch(call(`http://127.0.0.1:${peer.port}/`));
    await egress.close();
    await closed(peer.sockets[0]!);
  });

  test("and timers of a finished call do not keep the process", async () => {
    const peer = await httpPeer((_request, response) => response.end("ok"));
    const timers = () => process.getActiveResourcesInfo().filter((name) => name === "Timeout").length;
    const egress = openLocal();
    const before = timers();
    for (let i = 0; i < 50; i += 1) {
      await egress.fetch(call(`http://127.0.0.1:${peer.port}/`, { timeoutMs: 3_000_000 }));
    }
    expect(timers() - before).toBeLessThan(25);
  });

  test("beyond a certain age take no new call", async () => {
    const peer = await httpPeer((_request, response) => setTimeout(() => response.end("ok"), 30));
    const egress = openLocal({ maxConnectionAgeMs: 5 });
    await egress.fetch(call(`http://127.0.0.1:${peer.port}/`));
    await egress.fetch(call(`http://127.0.0.1:${peer.port}/`));
    expect(peer.sockets).toHaveLength(2);
  });

  test("are bounded: per origin at once, waiting, and kept in all", async () => {
    let running = 0;
    let most = 0;
    const answers: (() => void)[] = [];
    const peer = await httpPeer((_request, response) => {
      most = Math.max(most, (running += 1));
      answers.push(() => {
        running -= 1;
        response.end("ok");
      });
    });
    const egress = openLocal({ maxConnectionsPerOrigin: 3, maxWaitingPerOrigin: 5, maxIdleConnections: 2 });
    const request = call(`http://127.0.0.1:${peer.port}/`);
    const calls = Array.from({ length: 8 }, () => egress.fetch(request));
    expect(await failure(egress.fetch(request))).toMatchObject({ kind: "busy", sent: false });
    for (let answered = 0; answered < 8; answered += 1) {
      await expect.poll(() => answers.length, { interval: 2 }).toBeGreaterThan(answered);
      answers[answered]!();
    }
    expect((await Promise.all(calls)).map(text)).toEqual(Array(8).fill("ok"));
    expect(most).toBe(3);
    await expect.poll(() => peer.sockets.filter((socket) => !socket.destroyed).length, { interval: 2 }).toBe(2);
  });

  test("and calls in all are bounded too, whatever their origins", async () => {
    const peers = await Promise.all([1, 2, 3].map(() => rawPeer("")));
    const egress = openLocal({ maxCalls: 2 });
    const abort = new AbortController();
    const [first, second, third] = peers.map(({ port }) =>
      failure(egress.fetch(call(`http://127.0.0.1:${port}/`, { signal: abort.signal }))),
    );
    expect(await third).toMatchObject({ kind: "busy", sent: false });
    abort.abort();
    expect([(await first)!.kind, (await second)!.kind]).toEqual(["aborted", "aborted"]);
    expect(peers[2]!.sockets).toHaveLength(0);
  });

  test("a call that gives up while waiting leaves its place to the next", async () => {
    const answers: (() => void)[] = [];
    const peer = await httpPeer((_request, response) => void answers.push(() => response.end("ok")));
    const egress = openLocal({ maxConnectionsPerOrigin: 1, maxWaitingPerOrigin: 1 });
    const url = `http://127.0.0.1:${peer.port}/`;
    const first = egress.fetch(call(url));
    const abort = new AbortController();
    const second = failure(egress.fetch(call(url, { signal: abort.signal })));
    abort.abort();
    expect(await second).toMatchObject({ kind: "aborted", sent: false });
    const third = egress.fetch(call(url));
    for (const n of [0, 1]) {
      await expect.poll(() => answers.length, { interval: 2 }).toBeGreaterThan(n);
      answers[n]!();
    }
    expect([text(await first), text(await third)]).toEqual(["ok", "ok"]);
  });

  test("of a dead endpoint hold up no other", async () => {
    const dead = await tcpPeer((socket) => socket.resume());
    const alive = await httpPeer((_request, response) => response.end("ok"));
    const egress = openLocal({ maxConnectionsPerOrigin: 2 });
    const abort = new AbortController();
    const stuck = Array.from({ length: 50 }, () =>
      failure(egress.fetch(call(`http://127.0.0.1:${dead.port}/`, { signal: abort.signal }))),
    );
    expect(text(await egress.fetch(call(`http://127.0.0.1:${alive.port}/`)))).toBe("ok");
    abort.abort();
    expect((await Promise.all(stuck)).every((error) => error.kind === "aborted")).toBe(true);
    expect(dead.sockets.length).toBeLessThanOrEqual(2);
  });
});
