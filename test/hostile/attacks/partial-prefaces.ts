import { preface } from "../../wire-fixtures/raw.ts";
import { dial } from "../dial.ts";
import { holding } from "./held.ts";

/** Connections that send the first three bytes of the HTTP/2 preface, or a few more, and nothing after. */
export const partialPrefaces = holding("partial prefaces", async (target, at) => {
  const connection = await dial(target, "h2");
  connection.socket.write(preface.subarray(0, at % 2 === 0 ? 3 : 1 + (at % 20)));
  return connection;
});
