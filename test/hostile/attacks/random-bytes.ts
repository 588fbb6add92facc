import type { Attack } from "../attack.ts";
import { closedWithin, dial, dialTcp } from "../dial.ts";

const starts = [
  "",
  "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
  "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
  "POST /moltwire.bus.v1.BusService/SubmitTask HTTP/1.1\r\nhost: x\r\n",
  "POST /moltwire.bus.v1.BusService/SubmitTask HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n",
  "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
];

/** Bytes that are nothing, from the beginning or after a decent one; over TLS also in the handshake's place. */
export const randomBytes: Attack = {
  name: "random bytes",
  right: /^(closed|HTTP 4\d\d)$/,
  perSecond: 500,
  atOnce: 50,
  twin: "bare",
  begin: (target, choose) => ({
    async one() {
      const isInside = target.isTls && choose.chance(0.5);
      const start = Buffer.from(choose.pick(starts), "latin1");
      const bytes = Buffer.from(Array.from({ length: choose.int(0, 2_000) }, () => choose.int(0, 255)));
      const connection = await (isInside ? dial(target, choose.pick(["h2", "http/1.1"])) : dialTcp(target));
      connection.socket.end(Buffer.concat([start, bytes]));
      if (!(await closedWithin(connection, 25_000))) {
        connection.socket.destroy();
        return "left open";
      }
      const [, status] = /^HTTP\/1.1 (\d+)/.exec(connection.text()) ?? [];
      return status ? `HTTP ${status}` : "closed";
    },
    end() {},
  }),
};
