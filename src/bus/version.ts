/** A registered version of a contract. */
export type AvailableVersion = { readonly version: string; readonly deprecated: boolean };

/** What a request for a version comes to. */
export type Resolution =
  | { readonly kind: "found"; readonly version: string; readonly deprecated: boolean }
  /** Well-formed, but nothing available answers it. */
  | { readonly kind: "none" }
  /** Neither a version nor a range. */
  | { readonly kind: "invalid"; readonly message: string };

/** The version itself when it is exactly semver 2.0.0 of at most 64 characters (no leading `v`, no spaces), else `undefined`. */
export const parseVersion = (_text: string): string | undefined => {
  throw new Error("not built");
};

/** Chooses among the versions of a contract. */
export const resolveVersion = (_requested: string, _available: readonly AvailableVersion[]): Resolution => {
  throw new Error("not built");
};
