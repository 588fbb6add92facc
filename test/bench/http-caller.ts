/** The least an HTTP/1.1 client can be: one socket, one request at a time, the answer looked at as bytes. */
import { once } from "node:events";
import { connect } from "node:net";
import { isWholeReply, statusOfReply } from "./resp.ts";

/** An answer. The bytes are good until the next call. */
export type Answer = { readonly status: number; readonly bytes: Buffer };

export type Caller = {
  /** Sends a whole request. One at a time. */
  call(request: Uint8Array): Promise<Answer>;
  close(): void;
};

const headEnd = Buffer.from("\r\n\r\n");
const lastChunk = Buffer.from("\r\n0\r\n\r\n");
const lengthName = Buffer.from("ontent-length: ");
const noBytes: Buffer = Buffer.alloc(0);

export type Protocol = "http" | "redis";

/** Opens a connection to the loopback interface and keeps it. */
export async function openCaller(port: number, speaks: Protocol): Promise<Caller> {
  const [isEnded, statusIn] = speaks === "http" ? [isWhole, statusOf] : [isWholeReply, statusOfReply];
  const socket = connect({ port, host: "127.0.0.1", noDelay: true });
  await once(socket, "connect");
  let waiting: { resolve: (answer: Answer) => void; reject: (error: Error) => void } | undefined;
  let received: Buffer = noBytes;
  socket.on("data", (chunk: Buffer) => {
    received = received.length === 0 ? chunk : Buffer.concat([received, chunk]);
    if (!isEnded(received)) return;
    const answer = { status: statusIn(received), bytes: received };
    received = noBytes;
    waiting?.resolve(answer);
  });
  socket.on("error", (error) => waiting?.reject(error));
  socket.on("close", () => waiting?.reject(new Error("the server closed the connection")));
  return {
    call: (request) =>
      new Promise((resolve, reject) => {
        waiting = { resolve, reject };
        socket.write(request);
      }),
    close: () => void socket.destroy(),
  };
}

/** An answer has a length or is in chunks (RFC 9112, section 6). */
function isWhole(bytes: Buffer): boolean {
  const end = bytes.indexOf(headEnd);
  if (end < 0) return false;
  const at = bytes.indexOf(lengthName);
  if (at < 0 || at > end) return bytes.subarray(-lastChunk.length).equals(lastChunk);
  let length = 0;
  for (let i = at + lengthName.length; i < end && bytes[i]! >= 48 && bytes[i]! <= 57; i++)
    length = length * 10 + bytes[i]! - 48;
  return bytes.length >= end + headEnd.length + length;
}

/** The three digits after `HTTP/1.1 `. */
const statusOf = (bytes: Buffer): number => (bytes[9]! - 48) * 100 + (bytes[10]! - 48) * 10 + bytes[11]! - 48;
