/** Signatures as Standard Webhooks 1.0.0 says: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md */
import { createHmac, timingSafeEqual } from "node:crypto";
import { badField } from "../errors.ts";
import type { Ids } from "../ids.ts";

const prefix = "whsec_";
const newBytes = 32;
const [minBytes, maxBytes] = [24, 64];

/** A new secret: `whsec_` and 32 bytes in base64. */
export const newSecret = (ids: Ids): string => prefix + Buffer.from(ids.bytes(newBytes)).toString("base64");

const keyOf = (secret: string): Buffer => Buffer.from(secret.slice(prefix.length), "base64");

/** What a secret is, for people. */
export const formOfSecret = `${prefix} and ${minBytes} to ${maxBytes} bytes in base64, with its padding`;

/** Whether it is {@link formOfSecret}. */
export function isSecret(secret: string): boolean {
  const key = keyOf(secret);
  const spelled = prefix + key.toString("base64");
  return secret === spelled && key.length >= minBytes && key.length <= maxBytes;
}

/** INVALID_REQUEST unless it is {@link formOfSecret}. */
export function checkSecret(secret: string, field: string): void {
  if (!isSecret(secret)) throw badField(field, `must be ${formOfSecret}`);
}

/** What goes with a request. `atMs` is the time of the attempt; one signature a secret, in their order. */
export function signedHeaders(
  secrets: readonly string[],
  { id, atMs, body }: { readonly id: string; readonly atMs: number; readonly body: string },
): Record<string, string> {
  const timestamp = String(Math.floor(atMs / 1000));
  return {
    "webhook-id": id,
    "webhook-timestamp": timestamp,
    "webhook-signature": secrets.map((secret) => signatureOf(secret, `${id}.${timestamp}.${body}`)).join(" "),
  };
}

const signatureOf = (secret: string, signed: string | Uint8Array): string =>
  `v1,${createHmac("sha256", keyOf(secret)).update(signed).digest("base64")}`;

/** How far the time of what is taken may be from now, either way. */
export const toleranceMs = 300_000;

/** Why something is not taken as signed: a header is missing, its time is too far off, or no signature is of one of the secrets. */
export type SignatureFlaw = "MISSING" | "TIME" | "WRONG";

/** Whether what has come was signed with one of the secrets, not long ago; undefined: it was. `header` gives a header by its name, empty if it is not there. */
export function signatureFlaw(
  secrets: readonly string[],
  header: (name: string) => string,
  body: Uint8Array,
  now: number,
): SignatureFlaw | undefined {
  const [id, timestamp, signatures] = [header("webhook-id"), header("webhook-timestamp"), header("webhook-signature")];
  if (id === "" || timestamp === "" || signatures === "") return "MISSING";
  if (!/^\d{1,12}$/.test(timestamp) || Math.abs(now - Number(timestamp) * 1000) > toleranceMs) return "TIME";
  const signed = Buffer.concat([Buffer.from(`${id}.${timestamp}.`), body]);
  const right = secrets.map((secret) => Buffer.from(signatureOf(secret, signed)));
  const isRight = (given: Buffer) => right.some((one) => one.length === given.length && timingSafeEqual(one, given));
  return signatures.split(" ").some((one) => isRight(Buffer.from(one))) ? undefined : "WRONG";
}
