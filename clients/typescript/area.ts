/** What areas are made of: the service's own methods, and beside them the few that are said in one word. */
import type { DescService } from "@bufbuild/protobuf";
import type { CallOptions, Client } from "@connectrpc/connect";
import { anySignal } from "./time.ts";

/** A service's client with helpers; a helper hides a method of its name, which is in `rpc` still. */
export type Area<S extends DescService, Helpers> = Omit<Client<S>, keyof Helpers> &
  Helpers & {
    /** Every method of the service as the protocol has it. */
    readonly rpc: Client<S>;
  };

/** Puts them together. */
export const areaOf = <S extends DescService, Helpers>(rpc: Client<S>, helpers: Helpers): Area<S, Helpers> => ({
  ...rpc,
  ...helpers,
  rpc,
});

/** What of each message of a feed is told, until `signal` aborts, which ends the loop without an error. */
export async function* told<Message, Item>(
  open: (options: CallOptions) => AsyncIterable<Message>,
  options: CallOptions,
  pick: (message: Message) => Item | undefined,
): AsyncGenerator<Item, void, undefined> {
  const left = new AbortController();
  try {
    for await (const message of open({ ...options, signal: anySignal(options.signal, left.signal) })) {
      const item = pick(message);
      if (item !== undefined) yield item;
    }
  } catch (error) {
    if (!options.signal?.aborted) throw error;
  } finally {
    left.abort();
  }
}

/** The items of all pages, each page read when its first item is wanted. */
export async function* paged<Page extends { readonly nextPageToken: string }, Item>(
  read: (pageToken: string) => Promise<Page>,
  itemsOf: (page: Page) => readonly Item[],
): AsyncGenerator<Item, void, undefined> {
  let token = "";
  do {
    const page = await read(token);
    yield* itemsOf(page);
    token = page.nextPageToken;
  } while (token);
}
