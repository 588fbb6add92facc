import type { JsonValue } from "@bufbuild/protobuf";

/** Whether arrays and objects lie in one another more than so many levels deep. Looks no deeper than that. */
export function deeperThan(value: JsonValue, levels: number): boolean {
  if (typeof value !== "object" || value === null) return false;
  return levels === 0 || Object.values(value).some((inner) => deeperThan(inner as JsonValue, levels - 1));
}
