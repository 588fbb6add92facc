import type { DescMessage, DescMethodUnary, MessageInitShape, MessageShape } from "@bufbuild/protobuf";
import { useInfiniteQuery } from "@connectrpc/connect-query";
import { useEffect, useState } from "react";

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
  const { hasNextPage, isFetching, isFetchingNextPage, isLoading, error, fetchNextPage } = query;
  const pages = (query.data as { pages: MessageShape<O>[] } | undefined)?.pages ?? [];
  const rows = pages.flatMap(rowsOf);
  // How many pages there were when another was asked for. Something new has all of them read again, which ends the reading of the next: then that is asked for again.
  const [from, setFrom] = useState<number>();
  const isWanted = from !== undefined;
  useEffect(() => {
    if (from === undefined) return;
    if (isFetching) return;
    if (pages.length !== from || !hasNextPage || error) setFrom(undefined);
    else void fetchNextPage();
  }, [from, pages.length, hasNextPage, isFetching, error, fetchNextPage]);
  const leadsOn = rows.length === 0 && hasNextPage && !isFetchingNextPage && !error;
  useEffect(() => {
    if (leadsOn) void fetchNextPage();
  }, [leadsOn, fetchNextPage]);
  return {
    list: {
      rows,
      isPending: isLoading || (rows.length === 0 && hasNextPage && !error),
      error,
      more: hasNextPage
        ? () => {
            setFrom(pages.length);
            void fetchNextPage();
          }
        : undefined,
      isFetchingMore: isFetchingNextPage || isWanted,
    },
    refetch: () => void query.refetch(),
  };
}
