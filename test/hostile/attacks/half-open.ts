import { dialTcp } from "../dial.ts";
import { holding } from "./held.ts";

/** Connections that say nothing at all, not even hello; half of them end their own half. */
export const halfOpen = holding("silent and half-open connections", async (target, at) => {
  const connection = await dialTcp(target);
  if (at % 2 === 1) connection.socket.end();
  return connection;
});
