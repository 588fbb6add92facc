/** What can be kept. */
type Keepable = { readonly usable: () => boolean; readonly destroy: () => void };

/** Connections kept for a next call to the same origin. */
export type Idle<Connection extends Keepable> = {
  readonly take: (origin: string) => Connection | undefined;
  /** Keeps the connection, or closes it if it cannot serve again. */
  readonly give: (origin: string, connection: Connection) => void;
  /** Closes all that are kept, and from now on all that are given. */
  readonly close: () => void;
};

/**
 * @param maxConnections how many are kept in all; beyond that the one kept longest is closed. Those that have closed
 * meanwhile count until they are met again.
 */
export const openIdle = <Connection extends Keepable>(maxConnections: number): Idle<Connection> => {
  const kept = new Map<Connection, string>();
  const byOrigin = new Map<string, Set<Connection>>();
  let closed = false;

  const forget = (connection: Connection): void => {
    const origin = kept.get(connection);
    if (origin === undefined) return;
    kept.delete(connection);
    const siblings = byOrigin.get(origin)!;
    siblings.delete(connection);
    if (siblings.size === 0) byOrigin.delete(origin);
  };

  return {
    take: (origin) => {
      for (const connection of byOrigin.get(origin) ?? []) {
        forget(connection);
        if (connection.usable()) return connection;
        connection.destroy();
      }
      return undefined;
    },
    give: (origin, connection) => {
      if (closed || !connection.usable()) return connection.destroy();
      kept.set(connection, origin);
      byOrigin.set(origin, (byOrigin.get(origin) ?? new Set()).add(connection));
      const [oldest] = kept.keys();
      if (kept.size <= maxConnections || !oldest) return;
      forget(oldest);
      oldest.destroy();
    },
    close: () => {
      closed = true;
      for (const connection of kept.keys()) connection.destroy();
      kept.clear();
      byOrigin.clear();
    },
  };
};
