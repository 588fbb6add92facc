/** A plain balancer of TCP connections, as one would put before replicas: it knows nothing of what is said over them. */
import { once } from "node:events";
import { connect, createServer, type Socket } from "node:net";

export type Balancer = AsyncDisposable & { readonly url: string };

/** Passes each connection to the next of the replicas, or, where that takes none, to the one after it. `replicas` gives their URLs as they are now. */
export async function balancer(replicas: () => readonly string[]): Promise<Balancer> {
  const sockets = new Set<Socket>();
  let turn = 0;
  const keep = (socket: Socket, other: () => Socket | undefined) => {
    sockets.add(socket);
    socket.on("error", () => {});
    socket.on("close", () => {
      sockets.delete(socket);
      other()?.destroy();
    });
  };
  const server = createServer({ pauseOnConnect: true }, (near) => {
    let far: Socket | undefined;
    keep(near, () => far);
    const urls = replicas();
    const first = turn++;
    const attempt = (n: number): void => {
      if (near.destroyed) return;
      if (n === urls.length) return void near.destroy();
      const { port } = new URL(urls[(first + n) % urls.length]!);
      const next = connect(Number(port), "127.0.0.1");
      const refused = () => attempt(n + 1);
      next.once("error", refused);
      next.once("connect", () => {
        next.off("error", refused);
        if (near.destroyed) return void next.destroy();
        far = next;
        keep(next, () => near);
        near.pipe(next).pipe(near);
        near.resume();
      });
    };
    attempt(0);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${(server.address() as { port: number }).port}`,
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      await new Promise((closed) => server.close(closed));
    },
  };
}
