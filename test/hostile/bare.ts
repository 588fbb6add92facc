/** A server of nobody's: node:http and node:http2 with their defaults on one port, which drop what they are sent. `bare.ts [KEY CERT]`. */
import { readFileSync } from "node:fs";
import http, { type IncomingMessage, type ServerResponse } from "node:http";
import http2, { type Http2ServerRequest, type Http2ServerResponse } from "node:http2";
import net, { type AddressInfo, type Socket } from "node:net";
import tls from "node:tls";

const [keyFile, certFile] = process.argv.slice(2);

function answer(request: IncomingMessage | Http2ServerRequest, response: ServerResponse | Http2ServerResponse): void {
  request.on("error", () => {}).resume();
  response.on("error", () => {});
  response.statusCode = 404;
  response.end();
}

const h1 = http.createServer(answer);
const h2 = http2.createServer(answer);
h2.on("session", (session) => session.on("error", () => {}));

function take(socket: Socket): void {
  socket.on("error", () => socket.destroy());
  socket.once("readable", () => {
    const head: Buffer | null = socket.read();
    if (head === null) return;
    socket.unshift(head);
    (head[0] === 0x50 && head[1] === 0x52 ? h2 : h1).emit("connection", socket);
  });
}

const server =
  keyFile && certFile
    ? tls.createServer(
        { key: readFileSync(keyFile), cert: readFileSync(certFile), ALPNProtocols: ["h2", "http/1.1"] },
        take,
      )
    : net.createServer(take);
server.on("tlsClientError", (_error, socket: Socket) => socket.destroy());
server.listen(0, "127.0.0.1", () => {
  console.log(`listening on http://127.0.0.1:${(server.address() as AddressInfo).port}`);
});
