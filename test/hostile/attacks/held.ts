import type { RawConnection } from "../../wire-fixtures/raw.ts";
import type { Attack, Target } from "../attack.ts";

type Opening = (target: Target, at: number) => Promise<RawConnection>;

/** An attack of connections that are opened and left, all of them at once, until the run is over or the server ends them. */
export function holding(name: string, open: Opening): Attack {
  return {
    name,
    right: /^(held|closed)$/,
    perSecond: 500,
    atOnce: 50,
    twin: "bare",
    begin(target) {
      const held = new Set<RawConnection>();
      let opened = 0;
      return {
        async one() {
          let connection: RawConnection;
          try {
            connection = await open(target, opened++);
          } catch {
            return "closed";
          }
          held.add(connection);
          return connection.isClosed() ? "closed" : "held";
        },
        end() {
          for (const { socket } of held) socket.destroy();
        },
      };
    },
  };
}
