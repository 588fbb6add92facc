import type { DescMessage, DescMethodUnary, MessageInitShape, MessageShape } from "@bufbuild/protobuf";
import { useInfiniteQuery } from "@connectrpc/connect-query";
import { useEffect } from "react";

/** What `List` shows of a method that lists, and how it is read again. */
export type Pages<Row> = {
  readonly list: {
    readonly rows: readonly Row[];
    readonly isPending: boolean;
    readonly error: unknown;
    readonly more: (() => void) | undefined;
    readonly isFetchingMore: boolean;
  };
  readonly refetch: () => void;
};

type Page = { readonly nextPageToken: string };
type Options = {
  /** Default: 50. */
  readonly pageSize?: number;
  /** Whether to read at all. Default: yes. */
  readonly enabled?: boolean;
};

/** Reads a list page after page, each when it is asked for. A page without rows that is not the last one leads on to the next by itself. */
export function usePages<I extends DescMessage, O extends DescMessage, Row>(
  method: DescMethodUnary<I, O>,
  request: MessageInitShape<I>,
  rowsOf: (page: MessageShape<O>) => readonly Row[],
  { pageSize = 50, enabled = true }: Options = {},
): Pages<Row> {
  // Which fields a request has is known only where a method is named; that it has these two is what makes it a list.
  const query = useInfiniteQuery(
    method as DescMethodUnary,
    { ...request, pageSize, pageToken: "" } as never,
    {
      pageParamKey: "pageToken" as never,
      getNextPageParam: (page: unknown) => (page as Page).nextPageToken || undefined,
      enabled,
    } as never,
  );
  const { hasNextPage, isFetchingNextPage, isLoading, error, fetchNextPage } = query;
  const rows = ((query.data as { pages: MessageShape<O>[] } | undefined)?.pages ?? []).flatMap(rowsOf);
  const leadsOn = rows.length === 0 && hasNextPage && !isFetchingNextPage && !error;
  useEffect(() => {
    if (leadsOn) void fetchNextPage();
  }, [leadsOn, fetchNextPage]);
  return {
    list: {
      rows,
      isPending: isLoading || (rows.length === 0 && hasNextPage && !error),
      error,
      more: hasNextPage ? () => void fetchNextPage() : undefined,
      isFetchingMore: isFetchingNextPage,
    },
    refetch: () => void query.refetch(),
  };
}
