import http2 from "node:http2";
import { BlockList, isIPv4 } from "node:net";
import fc from "fast-check";
import { pino } from "pino";
import { afterEach, describe, expect, test } from "vitest";
import { readConfig } from "../src/config.ts";
import { isWithin, readNetwork } from "../src/federation/allowed-networks.ts";
import { clientAddress } from "../src/rpc/client-address.ts";
import { start, type World } from "./harness.ts";
import { request2 } from "./wire-fixtures/raw.ts";

const path = "/moltwire.ops.v1.StatusService/GetStatus";
const worlds: World[] = [];
afterEach(async () => {
  for (const world of worlds.splice(0)) await world[Symbol.asyncDispose]();
});

/** A server that trusts these proxies, and a call with these headers: whom the log takes for its client. */
async function clientSeen(trustedProxies: readonly string[], headers: Record<string, string>) {
  const lines: { msg: string; client?: string }[] = [];
  const log = pino({ level: "debug" }, { write: (line: string) => void lines.push(JSON.parse(line)) });
  const world = await start("sqlite", {
    trustedProxies: readConfig([], { MOLTWIRE_TRUSTED_PROXIES: trustedProxies.join(",") }).trustedProxies,
    log,
  });
  worlds.push(world);
  const call = () => lines.filter(({ msg }) => msg === "call").at(-1)?.client;
  const over1 = await fetch(`${world.url}${path}`, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: "{}",
  });
  expect(over1.status).toBe(200);
  const first = call();
  const session = http2.connect(world.url);
  await request2(session, { ":path": path, "content-type": "application/json", ...headers }, Buffer.from("{}"));
  session.close();
  // Both protocols have to agree.
  expect(call()).toBe(first);
  return first;
}

const forwarded = (text: string) => ({ "x-forwarded-for": text });

describe("the address of a client", () => {
  test("is its own, whatever it forwards, when no proxy is trusted", async () => {
    expect(await clientSeen([], forwarded("203.0.113.7"))).toBe("127.0.0.1");
  });

  test("is its own, whatever it forwards, when it is no trusted proxy", async () => {
    expect(await clientSeen(["10.0.0.0/8", "192.0.2.1"], forwarded("203.0.113.7"))).toBe("127.0.0.1");
  });

  test("is what a trusted proxy names", async () => {
    expect(await clientSeen(["127.0.0.0/8"], forwarded("203.0.113.7"))).toBe("203.0.113.7");
    expect(await clientSeen(["127.0.0.1"], forwarded("2001:db8::7"))).toBe("2001:db8::7");
    expect(await clientSeen(["127.0.0.1"], {})).toBe("127.0.0.1");
  });

  test("is the last that no trusted proxy answers for: what stands before it may be made up", async () => {
    const chain = forwarded("198.51.100.1, 203.0.113.7, 10.1.2.3");
    expect(await clientSeen(["127.0.0.1", "10.0.0.0/8"], chain)).toBe("203.0.113.7");
    expect(await clientSeen(["127.0.0.1"], chain)).toBe("10.1.2.3");
  });

  test("is the proxy's where it forwards what is no address", async () => {
    expect(await clientSeen(["127.0.0.1"], forwarded("<script>"))).toBe("127.0.0.1");
    expect(await clientSeen(["127.0.0.1", "10.0.0.0/8"], forwarded("203.0.113.7, unknown, 10.1.2.3"))).toBe("10.1.2.3");
  });

  test("is IPv4 also where the port listens on IPv6", async () => {
    expect(await clientSeen(["127.0.0.0/8"], forwarded("::ffff:203.0.113.7"))).toBe("203.0.113.7");
    expect(clientAddress({ ip: "::ffff:127.0.0.1" })).toBe("127.0.0.1");
    expect(clientAddress({ ip: "::1" })).toBe("::1");
  });

  test("is not read from other headers", async () => {
    const headers = { forwarded: "for=203.0.113.7", "x-real-ip": "203.0.113.7", "x-client-ip": "203.0.113.7" };
    expect(await clientSeen(["127.0.0.1"], headers)).toBe("127.0.0.1");
  });
});

describe("the networks of a key", () => {
  const ipv4 = fc.nat({ max: 0xff }).map((n) => `10.0.${n >> 4}.${n & 15}`);
  const ipv6 = fc.nat({ max: 0xff }).map((n) => `2001:db8:${(n >> 4).toString(16)}::${(n & 15).toString(16)}`);
  const cidr = (address: fc.Arbitrary<string>, width: number) =>
    fc.tuple(address, fc.nat({ max: width })).map(([text, prefix]) => `${text}/${prefix}`);
  const asIpv6 = (text: string) => `::ffff:${text}`;

  test("hold the addresses that the network library says they hold, also IPv4 ones in their IPv6 form", () => {
    const networks = fc.oneof(cidr(ipv4, 32), cidr(ipv6, 128)).filter((text) => typeof readNetwork(text) !== "string");
    const address = fc.oneof(ipv4, ipv4.map(asIpv6), ipv6);
    let within = 0;
    const rule = (list: string[], text: string) => {
      const known = new BlockList();
      for (const network of list) {
        const [first, prefix] = network.split("/") as [string, string];
        known.addSubnet(first, Number(prefix), isIPv4(first) ? "ipv4" : "ipv6");
      }
      const plain = text.replace("::ffff:", "");
      const held = known.check(plain, isIPv4(plain) ? "ipv4" : "ipv6");
      within += held ? 1 : 0;
      expect(isWithin(list, text)).toBe(held);
    };
    fc.assert(fc.property(fc.array(networks, { maxLength: 4 }), address, rule), { numRuns: 2_000, seed: 7 });
    expect(within).toBeGreaterThan(100);
  });

  test.each(["", "unknown", "10.0.0.1:80", "10.0.0", "010.0.0.1", "[::1]"])(
    "hold nothing that is no address: %j",
    (text) => expect(isWithin(["0.0.0.0/0", "::/0"], text)).toBe(false),
  );
});

describe("the list of proxies", () => {
  const read = (text: string) => readConfig([], { MOLTWIRE_TRUSTED_PROXIES: text }).trustedProxies;

  test("has addresses and CIDRs with commas between", () => {
    const list = ["10.0.0.0/8", "192.0.2.1", "2001:db8::/32", "::1"];
    expect(read(` ${list.join(" , ")},`)).toEqual(list);
    expect(read("")).toEqual([]);
  });

  test.each([
    ["proxy.internal", /neither an address nor a CIDR/],
    ["loopback", /neither an address nor a CIDR/],
    ["10.0.0/8", /neither an address nor a CIDR/],
    ["10.0.0.0/255.0.0.0", /neither an address nor a CIDR/],
    ["10.0.0.0/33", /prefix length of 1 to 32/],
    ["2001:db8::/129", /prefix length of 1 to 128/],
    ["0.0.0.0/0", /everybody/],
    ["::/0", /everybody/],
    ["fe80::1%eth0", /neither an address nor a CIDR/],
  ])("refuses %j", (text, why) => {
    expect(() => read(text)).toThrow(/^MOLTWIRE_TRUSTED_PROXIES \(--trusted-proxies\): /);
    expect(() => read(text)).toThrow(why);
  });
});
