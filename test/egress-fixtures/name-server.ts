import { createSocket } from "node:dgram";
import { once } from "node:events";
import { isIPv4 } from "node:net";
import { onTestFinished } from "vitest";

/** Address bytes of an IPv4 address, or of an IPv6 address written with all eight groups. */
const bytesOf = (address: string): Buffer =>
  isIPv4(address)
    ? Buffer.from(address.split(".").map(Number))
    : Buffer.from(
        address
          .split(":")
          .map((group) => group.padStart(4, "0"))
          .join(""),
        "hex",
      );

/** The answer to one query (RFC 1035), or nothing for a name in `silent`. */
const answer = (query: Buffer, table: Readonly<Record<string, readonly string[]>>, silent: readonly string[]) => {
  const labels: string[] = [];
  let at = 12;
  for (let length = query[at]!; length > 0; length = query[at]!) {
    labels.push(query.toString("latin1", at + 1, at + 1 + length));
    at += 1 + length;
  }
  const name = labels.join(".").toLowerCase();
  if (silent.includes(name)) return undefined;
  const wanted = query.readUInt16BE(at + 1);
  const known = table[name];
  const records = (known ?? []).filter((address) => wanted === (isIPv4(address) ? 1 : 28)).map(bytesOf);
  const head = Buffer.from(query.subarray(0, 12));
  head.writeUInt16BE(known ? 0x8180 : 0x8183, 2);
  head.writeUInt16BE(records.length, 6);
  head.writeUInt16BE(0, 8);
  head.writeUInt16BE(0, 10);
  const answers = records.map((bytes) => {
    const record = Buffer.from([0xc0, 12, 0, wanted, 0, 1, 0, 0, 0, 0, 0, bytes.length]);
    return Buffer.concat([record, bytes]);
  });
  return Buffer.concat([head, query.subarray(12, at + 5), ...answers]);
};

/** A name server on 127.0.0.1 that knows these names, and never answers for the silent ones. */
export const nameServer = async (
  table: Readonly<Record<string, readonly string[]>>,
  silent: readonly string[] = [],
): Promise<{ readonly address: string; readonly asked: () => Promise<void> }> => {
  const socket = createSocket("udp4");
  socket.on("message", (query, from) => {
    const reply = answer(query, table, silent);
    if (reply) socket.send(reply, from.port, from.address);
  });
  socket.bind(0, "127.0.0.1");
  await once(socket, "listening");
  onTestFinished(() => void socket.close());
  return {
    address: `127.0.0.1:${socket.address().port}`,
    asked: async () => void (await once(socket, "message")),
  };
};
