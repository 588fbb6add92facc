/** As server.ts, with a clock that runs faster than the machine's: `{"fromMs": …, "speed": …}` is when it began, at the machine's time, and how much faster it is. */
import { pino } from "pino";
import { createServer } from "../../src/server.ts";

type Fast = { readonly fromMs: number; readonly speed: number };
const { fromMs, speed, ...options } = JSON.parse(process.argv[2] ?? "{}") as Fast;
const clock = {
  now: () => Math.floor(fromMs + (Date.now() - fromMs) * speed),
  after(ms: number, run: () => void) {
    const timer = setTimeout(run, Math.ceil(ms / speed));
    return { cancel: () => clearTimeout(timer) };
  },
  sleep: (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, Math.ceil(ms / speed))),
};
const server = await createServer({ port: 0, rateLimit: 0, log: pino({ level: "silent" }), clock, ...options });
console.error(`listening on ${await server.listen()}`);
