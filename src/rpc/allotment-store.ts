/** Books of requests as the replicas share them: each change is one statement, that of who had seen the book last. */
import type { Db } from "../db/db.ts";
import { sql } from "../db/db.ts";
import { type Book, type Booking, windowMs } from "./allotment.ts";

/** A book, and a mark that changes with it; "" if there is none. */
export type Seen = { readonly book: Book; readonly stamp: string };

export type BookStore = {
  read(id: string): Promise<Seen>;
  /** False if the book has changed since it was seen. */
  swap(id: string, seen: string, next: Seen): Promise<boolean>;
};

export const nothingSeen: Seen = { book: [], stamp: "" };

/** The books of one kind of limit. */
export const bookStore = (db: Db, kind: string): BookStore => ({
  async read(id) {
    const row = await db.query.one<{ book: string; stamp: string }>(
      sql`select book, stamp from rate_book where kind = ${kind} and id = ${id}`,
    );
    return row ? { book: decoded(row.book), stamp: row.stamp } : nothingSeen;
  },
  swap: (id, seen, { book, stamp }) =>
    db.tx(async (tx) => {
      const overMs = Math.max(0, ...book.map(({ lastMs }) => lastMs)) + windowMs;
      const changed = await tx.run(sql`
        insert into rate_book (kind, id, stamp, book, over_ms) values (${kind}, ${id}, ${stamp}, ${encoded(book)}, ${overMs})
        on conflict (kind, id) do update set stamp = excluded.stamp, book = excluded.book, over_ms = excluded.over_ms
          where rate_book.stamp = ${seen}`);
      return changed === 1;
    }),
});

const deleteBatch = 1_000;

/** Deletes books in which nothing counts any more. */
export async function sweepBooks(db: Db, now: number): Promise<void> {
  const some = () =>
    db.tx((tx) =>
      tx.run(sql`
        delete from rate_book where (kind, id) in (
          select kind, id from rate_book where over_ms <= ${now} order by over_ms limit ${deleteBatch} ${tx.dialect.skipLocked})`),
    );
  while ((await some()) === deleteBatch);
}

type Written = [lastMs: number, count: number, holder?: string];

const encoded = (book: Book): string =>
  JSON.stringify(
    book.map(({ lastMs, count, holder }) => (holder === undefined ? [lastMs, count] : [lastMs, count, holder])),
  );

const decoded = (text: string): Book =>
  (JSON.parse(text) as Written[]).map(
    ([lastMs, count, holder]): Booking => ({
      lastMs,
      count,
      ...(holder !== undefined && { holder }),
    }),
  );
