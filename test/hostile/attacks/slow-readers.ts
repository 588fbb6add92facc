import { create, toBinary } from "@bufbuild/protobuf";
import { GetTaskRequestSchema } from "../../../gen/moltwire/bus/v1/bus_service_pb.ts";
import { frame, preface, type RawConnection } from "../../wire-fixtures/raw.ts";
import type { Attack, Attempts, Target } from "../attack.ts";
import { dial } from "../dial.ts";
import { callHeaders, hpack } from "../hpack.ts";

const calls = 20;
const pauseMs = 20;

/**
 * Sessions that ask 20 times for a task of 256 KiB, one call after the other, and take none of the answers. To make the answers is work whoever takes
 * them, 25 MB of them a second: so it is compared with readers who do.
 */
export const slowReaders: Attack = {
  name: "readers that take nothing, 20 × 256 KiB a session",
  right: /^(held|closed)$/,
  perSecond: 5,
  atOnce: 2,
  attempts: 100,
  twin: "polite",
  begin: (target) => readers(target, false),
  polite: (target) => readers(target, true),
};

function readers(target: Target, takes: boolean): Attempts {
  const held = new Set<RawConnection>();
  const head = hpack({ ...callHeaders(target.key), ":path": "/moltwire.bus.v1.BusService/GetTask" });
  const body = Buffer.from(
    toBinary(GetTaskRequestSchema, create(GetTaskRequestSchema, { taskId: target.largeTaskId })),
  );
  const asks = Array.from({ length: calls }, (_, i) =>
    Buffer.concat([frame(1, 4, 2 * i + 1, head), frame(0, 1, 2 * i + 1, body)]),
  );
  return {
    async one() {
      const connection = await dial(target, "h2");
      held.add(connection);
      // Windows of 16 MiB, so that the answers are the server's to keep and not held back by flow control.
      connection.socket.write(
        Buffer.concat([
          preface,
          frame(4, 0, 0, Buffer.from([0, 4, 1, 0, 0, 0])),
          frame(8, 0, 0, Buffer.from([1, 0, 0, 0])),
        ]),
      );
      if (!takes) connection.socket.pause();
      for (const ask of asks) {
        connection.socket.write(ask);
        await new Promise((resolve) => setTimeout(resolve, pauseMs));
      }
      return connection.isClosed() ? "closed" : "held";
    },
    end() {
      for (const { socket } of held) socket.destroy();
    },
  };
}
