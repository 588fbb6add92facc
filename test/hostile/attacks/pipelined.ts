import type { Attack } from "../attack.ts";
import { closedWithin, dial } from "../dial.ts";

const requests = 1_000;

/** Connections that send 1,000 requests at once and read no answer for a while. */
export const pipelined: Attack = {
  name: "1,000 pipelined requests in a connection",
  right: /^(answered|closed)$/,
  perSecond: 5,
  atOnce: 2,
  attempts: 25,
  twin: "bare",
  begin(target) {
    const flood = "POST /moltwire.bus.v1.BusService/Nothing HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n".repeat(
      requests,
    );
    return {
      async one() {
        const connection = await dial(target, "http/1.1");
        connection.socket.pause();
        connection.socket.end(flood);
        await new Promise((resolve) => setTimeout(resolve, 200));
        connection.socket.resume();
        const isClosed = await closedWithin(connection, 20_000);
        connection.socket.destroy();
        if (!isClosed) return "left open";
        return connection.text().startsWith("HTTP/1.1 404") ? "answered" : "closed";
      },
      end() {},
    };
  },
};
