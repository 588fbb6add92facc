// Who has a place at the port. When all are taken, those who do not use theirs make room.

import type { Socket } from "node:net";

/** The connections of a port. */
export type Connections = {
  /** Takes one in, if need be in the place of another; false: everybody is being served, and there is no room. */
  add(socket: Socket): boolean;
  /** A request began; how many there are now. */
  began(socket: Socket): number;
  /** A request of its ended. */
  ended(socket: Socket): void;
  destroyAll(): void;
};

/**
 * At most `max` at once. One more takes the place of the connection that has waited longest without ever having asked anything, else of the
 * one that has waited longest for its next request: a client who opens connections and leaves them keeps nobody out.
 */
export function limitedConnections(max: number): Connections {
  const silent = new Set<Socket>();
  const idle = new Set<Socket>();
  const busy = new Map<Socket, number>();
  const remove = (socket: Socket) => {
    silent.delete(socket);
    idle.delete(socket);
    busy.delete(socket);
  };
  return {
    add(socket) {
      if (silent.size + idle.size + busy.size >= max) {
        const [longest] = silent.size > 0 ? silent : idle;
        if (longest === undefined) return false;
        remove(longest);
        longest.destroy();
      }
      silent.add(socket);
      socket.once("close", () => remove(socket));
      return true;
    },
    began(socket) {
      const requests = (busy.get(socket) ?? 0) + 1;
      // It may have been closed with requests still unread.
      if (socket.destroyed) return requests;
      if (requests === 1 && !silent.delete(socket)) idle.delete(socket);
      busy.set(socket, requests);
      return requests;
    },
    ended(socket) {
      const requests = busy.get(socket);
      if (requests === undefined) return;
      if (requests > 1) busy.set(socket, requests - 1);
      else {
        busy.delete(socket);
        idle.add(socket);
      }
    },
    destroyAll() {
      for (const socket of [...silent, ...idle, ...busy.keys()]) socket.destroy();
    },
  };
}
