import { create, toBinary } from "@bufbuild/protobuf";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { TaskState } from "../gen/moltwire/bus/v1/task_pb.ts";
import {
  PeerCancelResultSchema,
  PeerCancelSchema,
  type PeerReceipt,
  PeerResultSchema,
} from "../gen/moltwire/federation/v1/peer_envelope_pb.ts";
import type { TaskRow } from "../src/bus/task-store.ts";
import type { Fault } from "../src/errors.ts";
import { digestText, holds, readSignature, sha256, signRequest } from "../src/federation/peer/http-signature.ts";
import { isSignedBy, keyFault, keyIdOf, publicHalf, signBytes, signingKeyOf } from "../src/federation/peer/key.ts";
import { parsePublicNames } from "../src/federation/peer/public-names.ts";
import { countedOf, type Expected, readReceipt, writeReceipt } from "../src/federation/peer/receipt.ts";
import { openMessage, signMessage } from "../src/federation/peer/signed-message.ts";
import { checkTimes, maxLifeMs, skewMs } from "../src/federation/peer/times.ts";
import { newKey } from "./federation-fixtures/hand-made.ts";

const hex = (text: string) => Buffer.from(text, "hex");

describe("keys", () => {
  test("sign as RFC 8032 says (section 7.1, test 2)", () => {
    const secret = hex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb");
    const key = signingKeyOf(secret);
    expect(Buffer.from(publicHalf(secret)).toString("hex")).toBe(
      "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
    );
    expect(Buffer.from(signBytes(key, hex("72"))).toString("hex")).toBe(
      "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    );
    expect(key.keyId).toBe(keyIdOf(publicHalf(secret)));
  });

  test("hold for the example of RFC 9421 (section B.2.6)", () => {
    const publicKey = Buffer.from("JrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=", "base64");
    const base = [
      '"date": Tue, 20 Apr 2021 02:07:55 GMT',
      '"@method": POST',
      '"@path": /foo',
      '"@authority": example.com',
      '"content-type": application/json',
      '"content-length": 18',
      '"@signature-params": ("date" "@method" "@path" "@authority" "content-type" "content-length");created=1618884473;keyid="test-key-ed25519"',
    ].join("\n");
    const signature = "wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw==";
    expect(isSignedBy(publicKey, Buffer.from(base), Buffer.from(signature, "base64"))).toBe(true);
  });
});

/** The eight points of small order (x = 0 has one sign), and the spellings of two of them that RFC 8032 does not let. */
const weakKeys = [
  "0100000000000000000000000000000000000000000000000000000000000000",
  "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
  "0000000000000000000000000000000000000000000000000000000000000000",
  "0000000000000000000000000000000000000000000000000000000000000080",
  "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
  "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
  "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
  "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
  "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
  "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
];

describe("a public key", () => {
  test("of small order, or spelled otherwise than one way, is none: anybody could sign by it", () => {
    for (const key of weakKeys) expect([key, keyFault(hex(key)) !== undefined]).toEqual([key, true]);
    expect(keyFault(hex(`f0${"ff".repeat(30)}7f`))).toContain("not spelled");
    for (let n = 0; n < 20; n++) expect(keyFault(newKey().publicKey)).toBeUndefined();
  });
});

describe("the signature of a request", () => {
  const { key, publicKey } = newKey();
  const url = "https://Beta.example:443/a/b?c=d";
  const contentDigest = digestText(sha256(Buffer.from("body")));
  const request = { method: "POST", url, contentType: "application/proto", contentDigest };
  const params = { createdS: 1_700_000_000, expiresS: 1_700_000_300, nonce: "00".repeat(16), keyId: key.keyId };
  const headers = signRequest(key, request, params);
  const read = (over: Record<string, string> = {}, at = url, method = "POST") =>
    readSignature(method, at, new Headers({ ...headers, ...over }));

  test("is over these lines, with the authority in its normal form", () => {
    expect(read()!.base.toString()).toBe(
      [
        '"@method": POST',
        '"@authority": beta.example',
        '"@path": /a/b',
        `"content-digest": sha-256=:${Buffer.from(sha256(Buffer.from("body"))).toString("base64")}:`,
        '"content-type": application/proto',
        `"@signature-params": ("@method" "@authority" "@path" "content-digest" "content-type");created=1700000000;expires=1700000300;nonce="${"00".repeat(16)}";keyid="${key.keyId}";alg="ed25519";tag="moltwire-peer"`,
      ].join("\n"),
    );
    expect(holds(read()!, publicKey)).toBe(true);
    expect(holds(read({}, "https://beta.example/a/b")!, publicKey)).toBe(true);
  });

  test("holds for nothing else", () => {
    const other = digestText(sha256(Buffer.from("another")));
    const changed = [
      read({}, "https://gamma.example/a/b"),
      read({}, "https://beta.example/a/c"),
      read({}, url, "PUT"),
      read({ "content-digest": other }),
      read({ "content-type": "application/json" }),
      read({ "signature-input": headers["signature-input"]!.replace("1700000300", "1700009999") }),
    ];
    for (const one of changed) expect(holds(one!, publicKey)).toBe(false);
    expect(holds(read()!, newKey().publicKey)).toBe(false);
  });

  test("is read in one spelling alone, whatever comes", () => {
    const spelled = headers["signature-input"]!;
    for (const odd of [
      `${spelled}, other=("@method")`,
      spelled.replace('"@method" ', ""),
      spelled.replace('alg="ed25519"', 'alg="hmac-sha256"'),
      spelled.replace("moltwire-peer", "another"),
      spelled.replace(";created=1700000000", ""),
      ` ${spelled};x`,
    ])
      expect(read({ "signature-input": odd })).toBeUndefined();
    fc.assert(
      fc.property(fc.string({ unit: fc.constantFrom(...'moltwire=(")@;:, 0Az+/') }), (text) => {
        expect(read({ "signature-input": text })).toBeUndefined();
        expect(read({ signature: text })).toBeUndefined();
      }),
      { numRuns: 300 },
    );
  });
});

describe("public names", () => {
  test("are hosts as URLs have them, and nothing else", () => {
    expect(parsePublicNames("Beta.example:443, beta.example:8443,[::1]:80,")).toEqual([
      ...["beta.example", "beta.example:8443", "[::1]:80"],
    ]);
    for (const odd of ["https://beta.example", "beta.example/", "a b", "me@beta.example", "beta.example?", "beta:x"])
      expect(() => parsePublicNames(odd)).toThrow("is not a host");
    expect(() => parsePublicNames(Array(17).fill("a").join(","))).toThrow("more than 16");
  });
});

describe("a signed message", () => {
  const { key, publicKey } = newKey();
  const signed = signMessage(key, PeerCancelSchema, { callId: "c" });

  test("is opened as what it was signed as, by the key that signed it", () => {
    expect(openMessage(signed, publicKey, PeerCancelSchema)).toMatchObject({ callId: "c" });
    // The same bytes are a message of the other kind too, and were not signed as one.
    expect(openMessage(signed, publicKey, PeerCancelResultSchema)).toBeUndefined();
    expect(openMessage(signed, newKey().publicKey, PeerCancelSchema)).toBeUndefined();
    const payload = toBinary(PeerCancelSchema, create(PeerCancelSchema, { callId: "d" }));
    expect(openMessage({ ...signed, payload }, publicKey, PeerCancelSchema)).toBeUndefined();
  });
});

describe("the times of a message", () => {
  const now = 1_700_000_000_000;
  const reasonOf = (createMs: number, expireMs: number) => {
    try {
      checkTimes(createMs, expireMs, now);
      return "taken";
    } catch (error) {
      return (error as Fault).reason;
    }
  };
  test.each([
    [-1_000, 60_000, "taken"],
    [skewMs, skewMs + maxLifeMs, "taken"],
    [skewMs + 1, skewMs + 60_000, "PEER_MESSAGE_EARLY"],
    [-60_000, 0, "PEER_MESSAGE_STALE"],
    [-60_000, 1, "taken"],
    [0, maxLifeMs + 1, "PEER_MESSAGE_STALE"],
    [-600_000, 60_000, "PEER_MESSAGE_STALE"],
    [600_000, 660_000, "PEER_MESSAGE_EARLY"],
    [Number.NaN, Number.NaN, "PEER_MESSAGE_STALE"],
  ])("made %d ms and good until %d ms from now: %s", (createMs, expireMs, reason) => {
    expect(reasonOf(now + createMs, now + expireMs)).toBe(reason);
  });
});

describe("a receipt", () => {
  const { key, publicKey } = newKey();
  const between = { origin: "b", audience: "a" };
  const payload = Buffer.from("asked");
  const outputJson = Buffer.from('"done"');
  const row = {
    ...{ task_id: "tsk_b", trace_id: "t", target_org_id: "org_b", contract_id: "c", contract_version: "1.0.0" },
    ...{ state: TaskState.COMPLETED, input_tokens: 3, output_tokens: 4, cost_micros: 5 },
  } as TaskRow;
  const receipt = writeReceipt(key, between, row, { callId: "x", payload }, outputJson, 0);
  const result = create(PeerResultSchema, { state: TaskState.COMPLETED, outputJson, receipt });
  const expected: Expected = {
    ...between,
    ...{ callId: "x", traceId: "t", orgId: "org_b", contractId: "c", requestSha256: sha256(payload) },
  };

  test("is taken for what it is of", () => {
    expect(readReceipt(result, publicKey, expected)).toMatchObject({
      ...{ callId: "x", taskId: "tsk_b", costMicros: 5n, usage: { inputTokens: 3n, outputTokens: 4n } },
    });
  });

  test("counts with what it says, and with no more than was left", () => {
    const said = readReceipt(result, publicKey, expected) as PeerReceipt;
    const all = { inputTokens: 3, outputTokens: 4, costMicros: 5 };
    expect(countedOf(said, { tokens: Infinity, micros: Infinity })).toEqual(all);
    expect(countedOf(said, { tokens: 7, micros: 5 })).toEqual(all);
    expect(countedOf(said, { tokens: 5, micros: 4 })).toEqual({ inputTokens: 3, outputTokens: 2, costMicros: 4 });
    expect(countedOf(said, { tokens: 2, micros: 0 })).toEqual({ inputTokens: 2, outputTokens: 0, costMicros: 0 });
  });

  test("is refused for anything else, by another key, and when there is none", () => {
    for (const name of ["origin", "audience", "callId", "traceId", "orgId", "contractId"] as const)
      expect(readReceipt(result, publicKey, { ...expected, [name]: "other" })).toContain(name);
    const other = (over: Partial<Expected>, of = result) => readReceipt(of, publicKey, { ...expected, ...over });
    expect(other({ requestSha256: sha256(Buffer.from("another")) })).toContain("request");
    expect(other({}, { ...result, outputJson: Buffer.from('"changed"') })).toContain("output");
    expect(other({}, { ...result, state: TaskState.FAILED })).toContain("end");
    expect(readReceipt(result, newKey().publicKey, expected)).toContain("not signed");
    const { receipt: _, ...without } = result;
    expect(readReceipt(without, publicKey, expected)).toContain("no receipt");
    const much = writeReceipt(
      ...([key, between, { ...row, cost_micros: -1 }, { callId: "x", payload }, outputJson, 0] as const),
    );
    expect(other({}, { ...result, receipt: much })).toContain("cost");
  });
});
