/** What updates of all areas share. */
import type { JsonObject } from "@bufbuild/protobuf";
import type { FieldMask } from "@bufbuild/protobuf/wkt";
import { badField, Fault } from "../errors.ts";
import { deeperThan } from "./json-depth.ts";

const maxMetadataBytes = 16_384;
/** Each level of JSON is up to three of messages, and many Protobuf libraries read no more than 100. */
const maxMetadataDepth = 24;
/** Characters of a path that an error repeats. */
const maxPathShown = 64;

/** The fields an update names, as written in the proto; INVALID_REQUEST for one that cannot be changed and for none at all. */
export function maskedFields<const Name extends string>(
  mask: FieldMask | undefined,
  changeable: readonly Name[],
): ReadonlySet<Name> {
  const paths = new Set((mask?.paths ?? []) as Name[]);
  if (paths.size === 0) throw badField("update_mask", `name the fields to change: ${changeable.join(", ")}`);
  for (const path of paths) {
    if (!changeable.includes(path))
      throw badField(
        "update_mask",
        `"${path.slice(0, maxPathShown)}" cannot be changed; these can: ${changeable.join(", ")}`,
      );
  }
  return paths;
}

/** Refuses a lost update: FAILED_PRECONDITION unless the caller saw this revision, or did not care (0). */
export function checkRevision(ifRevision: bigint, revision: number): void {
  if (ifRevision !== 0n && ifRevision !== BigInt(revision)) {
    throw new Fault("FAILED_PRECONDITION", `it was changed meanwhile: the revision is ${revision}, not ${ifRevision}`, {
      field: "if_revision",
      revision: String(revision),
    });
  }
}

/** Free-form metadata as text to store; INVALID_REQUEST beyond 16 KiB or 24 levels. */
export function checkMetadata(metadata: JsonObject | undefined, field = "metadata"): string {
  if (metadata && deeperThan(metadata, maxMetadataDepth))
    throw badField(field, `nested more than ${maxMetadataDepth} levels deep`);
  const text = JSON.stringify(metadata ?? {});
  if (Buffer.byteLength(text) > maxMetadataBytes) throw badField(field, `at most ${maxMetadataBytes} bytes as JSON`);
  return text;
}

/**
 * Runs a write that a unique name can refuse, and throws `taken` when it does. To look first is not enough on PostgreSQL, where another
 * transaction may take the name between the look and the write.
 */
export async function unlessTaken<T>(write: Promise<T>, taken: () => Fault): Promise<T> {
  try {
    return await write;
  } catch (error) {
    throw uniqueViolations.has((error as { code?: unknown }).code) ? taken() : error;
  }
}

/** PostgreSQL's and SQLite's. */
const uniqueViolations: ReadonlySet<unknown> = new Set(["23505", "SQLITE_CONSTRAINT_UNIQUE"]);
