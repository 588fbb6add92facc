import type { RawConnection } from "../../wire-fixtures/raw.ts";
import type { Attack } from "../attack.ts";
import { closedWithin, dialHttp2 } from "../dial.ts";

/** What is sent in one attempt: some bytes, then a block of frames again and again. */
export type Flood = { readonly first: Buffer; readonly block: Buffer; readonly blocks: number };

/** An attack of sessions that send one kind of frame as fast as it is taken, and read all answers. */
export function flooding(name: string, { first, block, blocks }: Flood): Attack {
  return {
    name,
    right: /^ended by the server$/,
    perSecond: 10,
    atOnce: 1,
    attempts: 50,
    twin: "bare",
    begin: (target) => ({
      async one() {
        const connection = await dialHttp2(target);
        connection.socket.write(first);
        await send(connection, block, blocks);
        const isClosed = await closedWithin(connection, 300);
        connection.socket.destroy();
        return isClosed ? "ended by the server" : "left open";
      },
      end() {},
    }),
  };
}

async function send({ socket, closed, isClosed }: RawConnection, block: Buffer, blocks: number): Promise<void> {
  for (let i = 0; i < blocks && !isClosed(); i++) {
    if (socket.write(block)) continue;
    await Promise.race([new Promise((resolve) => socket.once("drain", resolve)), closed]);
  }
}

/** A frame so many times. */
export const times = (count: number, frame: Buffer): Buffer =>
  Buffer.concat(Array.from({ length: count }, () => frame));
