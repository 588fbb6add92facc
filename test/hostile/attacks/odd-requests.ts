import type { Attack } from "../attack.ts";
import { closedWithin, dial } from "../dial.ts";

const path = "/moltwire.bus.v1.BusService/SubmitTask";
const heads = [
  `POST ${path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/proto\r\ncontent-length: 4294967296\r\n\r\n`,
  `POST ${path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/proto\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n`,
  `POST ${path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: -1\r\n\r\n`,
  `POST ${path} HTTP/1.1\r\nhost: x\r\ncontent-type: ;;;\r\ncontent-length: 2\r\n\r\n{}`,
  `POST ${path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n`,
  `POST ${path} HTTP/1.1\r\ncontent-type: application/json\r\n\r\n`,
  `POST ${path} HTTP/1.1\r\nhost: a b\r\ncontent-type: application/json\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}`,
  `OPTIONS * HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n`,
  `CONNECT example.org:443 HTTP/1.1\r\nhost: x\r\n\r\n`,
  `TRACE ${path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n`,
  `GET ${path}?connect=v1&encoding=json&message=%7B HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n`,
  `GET /%00%ff/../..//?%%% HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n`,
  `GET / HTTP/1.1\r\nhost: x\r\nupgrade: h2c\r\nconnection: upgrade, http2-settings\r\nhttp2-settings: AAAA\r\n\r\n`,
  `GET / HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n`,
  `GET / HTTP/1.1\r\nhost: x\r\nx: ${"y".repeat(100_000)}\r\n\r\n`,
  `POST ${path} HTTP/1.1\r\nhost: x\r\nexpect: 200-never\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}`,
];

/** HTTP/1.1 requests that are wrong in their heads: lengths, hosts, methods, upgrades, sizes. */
export const oddRequests: Attack = {
  name: "odd HTTP/1.1 requests",
  right: /^(closed|HTTP (200|301|302|4\d\d|501))$/,
  perSecond: 300,
  atOnce: 50,
  twin: "bare",
  begin: (target, choose) => ({
    async one() {
      const connection = await dial(target, "http/1.1");
      connection.socket.end(choose.pick(heads));
      const isClosed = await closedWithin(connection, 25_000);
      connection.socket.destroy();
      if (!isClosed) return "left open";
      const [, status] = /^HTTP\/1.1 (\d+)/.exec(connection.text()) ?? [];
      return status ? `HTTP ${status}` : "closed";
    },
    end() {},
  }),
};
