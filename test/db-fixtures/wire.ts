/** A wire between a server and its database that can be cut, fall silent, and lead elsewhere. */
import { once } from "node:events";
import { connect, createServer, type Socket } from "node:net";

export type Wire = AsyncDisposable & {
  /** The address of the database by way of the wire. */
  readonly url: string;
  /** Ends all connections without a word and refuses new ones. */
  refuse(): Promise<void>;
  /** Takes connections and lets nothing through, either way; what is said meanwhile is lost, and so are its connections. */
  silence(): void;
  /** Ends what had fallen silent, and lets new connections through again; to another database, if one is named. */
  mend(to?: string): Promise<void>;
};

/** Lays a wire to a `postgres://` address. */
export async function wireTo(address: string): Promise<Wire> {
  let target = new URL(address);
  let silent = false;
  const sockets = new Set<Socket>();
  const server = createServer((near) => {
    const far = connect(Number(target.port), target.hostname);
    for (const [one, other] of [
      [near, far],
      [far, near],
    ] as const) {
      sockets.add(one);
      one.on("error", () => other.destroy());
      one.on("data", (chunk) => {
        if (!silent) other.write(chunk);
      });
      one.on("close", () => {
        sockets.delete(one);
        if (!silent) other.destroy();
      });
    }
  });
  const open = async (port: number) => {
    server.listen(port, "127.0.0.1");
    await once(server, "listening");
    return (server.address() as { port: number }).port;
  };
  const port = await open(0);
  const cut = () => {
    for (const socket of sockets) socket.destroy();
  };
  const refuse = async () => {
    if (server.listening) {
      const closed = once(server, "close");
      server.close();
      cut();
      await closed;
    }
  };
  return {
    url: Object.assign(new URL(address), { hostname: "127.0.0.1", port: String(port) }).href,
    refuse,
    silence: () => void (silent = true),
    async mend(to = target.href) {
      target = new URL(to);
      if (silent) cut();
      silent = false;
      if (!server.listening) await open(port);
    },
    [Symbol.asyncDispose]: refuse,
  };
}
