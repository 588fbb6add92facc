/** Filters and what is open stand in the address, so that a page can be sent to somebody. */
import { useNavigate, useSearch } from "@tanstack/react-router";

/** One word of the address's search, and how to change it; empty: not there. */
export function useWord(name: string): readonly [string, (value: string) => void] {
  const search = useSearch({ strict: false }) as Record<string, unknown>;
  const navigate = useNavigate();
  const value = search[name];
  const set = (next: string) =>
    void navigate({
      to: ".",
      search: ((before: Record<string, unknown>) => ({ ...before, [name]: next || undefined })) as never,
      replace: true,
    });
  return [typeof value === "string" || typeof value === "number" ? String(value) : "", set];
}
