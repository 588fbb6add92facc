import { compareBuild, parse, prerelease, Range, satisfies } from "semver";

/** A registered version of a contract. */
export type AvailableVersion = { readonly version: string; readonly deprecated: boolean };

/** What a request for a version comes to. */
export type Resolution =
  | { readonly kind: "found"; readonly version: string; readonly deprecated: boolean }
  /** Well-formed, but nothing available answers it. */
  | { readonly kind: "none" }
  /** Neither a version nor a range. */
  | { readonly kind: "invalid"; readonly message: string };

/** Characters of a version or a range. */
const maxVersionLength = 64;

/** semver.org's own expression for 2.0.0; the digits of a number are bounded by the length of the whole. */
const exactly =
  /^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(?:-((?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(?:\.(?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*))?(?:\+([0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*))?$/;

/**
 * The version itself when it is semver 2.0.0 of at most 64 characters (no leading `v`, no spaces), else `undefined`. Numbers
 * beyond 2^53 - 1 are refused, as they could not be ordered.
 */
export const parseVersion = (text: string): string | undefined =>
  text.length <= maxVersionLength && exactly.test(text) && parse(text) ? text : undefined;

/** The newest; those that differ in build metadata only (semver has no order for them) by that, so that the choice never varies. */
const newest = (versions: readonly AvailableVersion[]): AvailableVersion | undefined =>
  versions.reduce<AvailableVersion | undefined>(
    (best, each) => (best && compareBuild(best.version, each.version) >= 0 ? best : each),
    undefined,
  );

const found = (chosen: AvailableVersion | undefined): Resolution =>
  chosen ? { kind: "found", version: chosen.version, deprecated: chosen.deprecated } : { kind: "none" };

const parseRange = (text: string): Range | undefined => {
  try {
    return new Range(text);
  } catch {
    return undefined;
  }
};

const resolveLatest = (open: readonly AvailableVersion[]): Resolution =>
  found(newest(open.filter(({ version }) => !prerelease(version))) ?? newest(open));

/**
 * Chooses among the versions of a contract. An exact version: that one, deprecated or not. A range (`^1.2`, `~1`, `1.x`, `>=1 <3`):
 * the newest release in it that is not deprecated. Empty: the newest release that is not deprecated, or, if there is none, the
 * newest pre-release. Pre-releases and build metadata are otherwise chosen only when named exactly. Versions that `parseVersion`
 * refuses are passed over.
 */
export const resolveVersion = (requested: string, available: readonly AvailableVersion[]): Resolution => {
  const open = available.filter(({ version, deprecated }) => !deprecated && parseVersion(version) !== undefined);
  if (requested === "") return resolveLatest(open);
  if (parseVersion(requested)) return found(available.find(({ version }) => version === requested));
  const range = requested.length <= maxVersionLength && requested.trim() !== "" ? parseRange(requested) : undefined;
  if (!range)
    return {
      kind: "invalid",
      message: "must be a version (1.2.3), a range of versions (^1.2), or empty for the latest",
    };
  return found(newest(open.filter(({ version }) => !prerelease(version) && satisfies(version, range))));
};
