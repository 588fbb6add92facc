/** What stands before replicas: each connection goes to the next of them that takes it. */
import { once } from "node:events";
import { connect, createServer, type Socket } from "node:net";

export async function balancerOf(ports: readonly number[]) {
  const sockets = new Set<Socket>();
  let turn = 0;

  const reach = async (): Promise<Socket | undefined> => {
    for (const _ of ports) {
      const far = connect(ports[turn++ % ports.length]!, "127.0.0.1");
      if (await once(far, "connect").catch(() => undefined)) return far;
    }
    return undefined;
  };

  const server = createServer({ pauseOnConnect: true }, async (near) => {
    sockets.add(near);
    near.on("error", () => {});
    near.on("close", () => sockets.delete(near));
    const far = await reach();
    if (!far || near.destroyed) {
      near.destroy();
      far?.destroy();
      return;
    }
    sockets.add(far);
    far.on("error", () => {});
    far.on("close", () => {
      sockets.delete(far);
      near.destroy();
    });
    near.on("close", () => far.destroy());
    near.pipe(far);
    far.pipe(near);
    near.resume();
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${(server.address() as { port: number }).port}`,
    async [Symbol.asyncDispose]() {
      const closed = new Promise((done) => server.close(done));
      for (const socket of sockets) socket.destroy();
      await closed;
    },
  };
}
