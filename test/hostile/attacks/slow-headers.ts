import { dial } from "../dial.ts";
import { holding } from "./held.ts";

const beginnings = [
  "POST /moltwire.bus.v1.BusService/SubmitTask HTTP/1.1\r\nhost: x\r\nx-a: ",
  "POST /moltwire.bus.v1.BusService/SubmitTask HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{",
  "G",
  "GET / HTTP/1.1\r\nhost: x\r\n\r\n",
];

/** HTTP/1.1 connections that stop in a head or a body, or never send a second request. */
export const slowHeaders = holding("slow HTTP/1.1 requests", async (target, at) => {
  const connection = await dial(target, "http/1.1");
  connection.socket.write(beginnings[at % beginnings.length]!);
  return connection;
});
