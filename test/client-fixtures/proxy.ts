/** A wire between a client and a server that can be held and cut: what the server answered then is lost. */
import { once } from "node:events";
import { connect, createServer, type Socket } from "node:net";

export async function wireTo(url: string) {
  const { port: target } = new URL(url);
  const sockets = new Set<Socket>();
  let holding = false;
  const server = createServer((near) => {
    const far = connect(Number(target), "127.0.0.1");
    for (const [one, other] of [
      [near, far],
      [far, near],
    ] as const) {
      sockets.add(one);
      one.on("error", () => other.destroy());
      one.on("close", () => {
        sockets.delete(one);
        other.destroy();
      });
    }
    near.on("data", (chunk) => far.write(chunk));
    far.on("data", (chunk) => {
      if (!holding) near.write(chunk);
    });
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const cut = () => {
    holding = false;
    for (const socket of sockets) socket.destroy();
  };
  return {
    url: `http://127.0.0.1:${(server.address() as { port: number }).port}`,
    /** From now on nothing that the server says arrives. */
    hold: () => void (holding = true),
    /** Ends all connections without a word; new ones are as ever. */
    cut,
    async [Symbol.asyncDispose]() {
      cut();
      await new Promise((closed) => server.close(closed));
    },
  };
}
