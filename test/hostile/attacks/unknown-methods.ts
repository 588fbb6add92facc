import { callerNames, openAsker, validMessage } from "../ask.ts";
import type { Attack } from "../attack.ts";

const services = [
  "moltwire.bus.v1.BusService",
  "moltwire.bus.v1.busservice",
  "no.such.Service",
  "grpc.health.v1.Health",
  "a.B",
];
const methods = ["Nothing", "submitTask", "SubmitTask2", "toString", "__proto__", "constructor"];

/** Methods and services that there are not, and names that every object has, by every protocol. */
export const unknownMethods: Attack = {
  name: "unknown methods",
  right: /^unimplemented$/,
  perSecond: 250,
  atOnce: 32,
  twin: "valid",
  begin(target, choose) {
    const { ask, end } = openAsker(target);
    return {
      one() {
        const name = choose.pick(callerNames);
        return ask(name, validMessage(name, target), { path: `/${choose.pick(services)}/${choose.pick(methods)}` });
      },
      end,
    };
  },
};
