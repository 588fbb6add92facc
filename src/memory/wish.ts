/** What a request wants done to a memory, checked. */
import { durationMs } from "@bufbuild/protobuf/wkt";
import type { Value } from "../../gen/moltwire/memory/v1/memory_pb.ts";
import type { BatchChange, BatchDelete, Write } from "../../gen/moltwire/memory/v1/memory_service_pb.ts";
import { badField } from "../errors.ts";
import { defaultNamespace } from "./limits.ts";
import { valueBytes } from "./value.ts";

/** Where an entry is in its memory. */
export type EntryPlace = { readonly namespace: string; readonly key: string };

/** What an entry says. */
export type Content = { readonly value: Value; readonly description: string; readonly tags: readonly string[] };

export type SetWish = {
  readonly kind: "set";
  /** The field of the request that says so, for errors. */
  readonly field: string;
  readonly place: EntryPlace;
  readonly content: Content;
  readonly sizeBytes: number;
  /** Undefined: for ever, or with `keepTtl` as it was. */
  readonly ttlMs: number | undefined;
  readonly keepTtl: boolean;
  /** 0: there must be none; undefined: whatever is there. */
  readonly ifRevision: bigint | undefined;
  /** Whether other organisations may read it; only of shared memory. */
  readonly isPublic: boolean;
};

export type DeleteWish = {
  readonly kind: "delete";
  readonly field: string;
  readonly place: EntryPlace;
  readonly ifRevision: bigint | undefined;
};

/** Announces that the entry's time is over, if it is. */
export type ExpireWish = { readonly kind: "expire"; readonly place: EntryPlace };

export type Wish = SetWish | DeleteWish | ExpireWish;

/** The place that a request names; INVALID_REQUEST for a key that is no Unicode text, which would be stored as another. */
export function placeOf(named: { readonly namespace: string; readonly key: string }, field: string): EntryPlace {
  for (const part of ["namespace", "key"] as const)
    if (!named[part].isWellFormed()) throw badField(field ? `${field}.${part}` : part, "half a surrogate pair");
  return { namespace: named.namespace || defaultNamespace, key: named.key };
}

/** INVALID_REQUEST, PAYLOAD_TOO_LARGE. */
export function setWish(write: Write, field: string, isPublic = false): SetWish {
  const { ttl, keepTtl, ifRevision, description, tags } = write;
  if (ttl && keepTtl) throw badField(`${field}.keep_ttl`, "give either ttl or keep_ttl");
  const place = placeOf(write, field);
  const value = write.value!;
  return {
    kind: "set",
    field,
    place,
    content: { value, description, tags },
    sizeBytes: Buffer.byteLength(place.key) + valueBytes(value, `${field}.value`),
    ttlMs: ttl && Math.max(1_000, Math.floor(durationMs(ttl))),
    keepTtl,
    ifRevision,
    isPublic,
  };
}

export const deleteWish = (
  named: Pick<BatchDelete, "namespace" | "key" | "ifRevision">,
  field: string,
): DeleteWish => ({
  kind: "delete",
  field,
  place: placeOf(named, field),
  ifRevision: named.ifRevision || undefined,
});

/** One change of a batch. */
export const batchWish = ({ change }: BatchChange, field: string): SetWish | DeleteWish =>
  change.case === "set" ? setWish(change.value, `${field}.set`) : deleteWish(change.value!, `${field}.delete`);
