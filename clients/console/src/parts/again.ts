import type { DescMethodUnary } from "@bufbuild/protobuf";
import { createConnectQueryKey } from "@connectrpc/connect-query";
import { useQueryClient } from "@tanstack/react-query";

/** Gives what has methods read again, as far as a page shows them: after a change. */
export function useReadAgain(): (methods: readonly DescMethodUnary[]) => Promise<void> {
  const queries = useQueryClient();
  return async (methods) => {
    for (const schema of methods)
      await queries.invalidateQueries({ queryKey: createConnectQueryKey({ schema, cardinality: undefined }) });
  };
}
