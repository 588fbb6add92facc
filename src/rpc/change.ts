/** What updates of all areas share. */
import type { JsonObject } from "@bufbuild/protobuf";
import type { FieldMask } from "@bufbuild/protobuf/wkt";
import { badField, Fault } from "../errors.ts";

const maxMetadataBytes = 16_384;

/** The fields an update names, as written in the proto; INVALID_REQUEST for one that cannot be changed and for none at all. */
export function maskedFields<const Name extends string>(
  mask: FieldMask | undefined,
  changeable: readonly Name[],
): ReadonlySet<Name> {
  const paths = new Set((mask?.paths ?? []) as Name[]);
  if (paths.size === 0) throw badField("update_mask", `name the fields to change: ${changeable.join(", ")}`);
  for (const path of paths) {
    if (!changeable.includes(path))
      throw badField("update_mask", `"${path}" cannot be changed; these can: ${changeable.join(", ")}`);
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

/** Free-form metadata as text to store; INVALID_REQUEST beyond 16 KiB. */
export function checkMetadata(metadata: JsonObject | undefined, field = "metadata"): string {
  const text = JSON.stringify(metadata ?? {});
  if (Buffer.byteLength(text) > maxMetadataBytes) throw badField(field, `at most ${maxMetadataBytes} bytes as JSON`);
  return text;
}
