import type { App } from "../app.ts";
import { type Body, OutcomeUnknownError, OverloadedError, UnavailableError } from "../db/db.ts";
import { isContention } from "../db/postgres-wire.ts";

/**
 * Storage that is overloaded, away, or asked for the same rows by too many at once, must not cost a task its end. To try again does no harm: what moves a task asks for the
 * hold, and so moves it once. While storage is away it waits, until the server ends.
 */
export async function persist<T>(app: App, body: Body<T>): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await app.db.tx(body);
    } catch (error) {
      if (error instanceof UnavailableError) {
        await app.clock.sleep(awayWaitMs, app.ending);
        attempt = 0;
        continue;
      }
      if (attempt === maxStorageAttempts || !mayPass(error)) throw error;
      await app.clock.sleep(firstStorageWaitMs * 2 ** (attempt - 1), app.ending);
    }
  }
}

const maxStorageAttempts = 8;
const firstStorageWaitMs = 50;
const awayWaitMs = 500;
const mayPass = (error: unknown): boolean =>
  error instanceof OverloadedError || error instanceof OutcomeUnknownError || isContention(error);
