import type { DescService } from "@bufbuild/protobuf";
import type { ServiceImpl } from "@connectrpc/connect";
import { Fault } from "../errors.ts";
import { methodName } from "./access.ts";

/** The handler of a service of which some methods are not built yet: those answer UNIMPLEMENTED. */
export function withUnbuilt<S extends DescService>(service: S, built: Partial<ServiceImpl<S>>): ServiceImpl<S> {
  const handlers: Record<string, unknown> = { ...built };
  for (const method of service.methods) {
    if (method.localName in handlers) continue;
    const refuse = () => {
      throw new Fault("UNIMPLEMENTED", `${methodName(method)} is not built yet`, { method: methodName(method) });
    };
    handlers[method.localName] =
      method.methodKind === "unary" || method.methodKind === "client_streaming"
        ? async () => refuse()
        : async function* () {
            yield refuse();
          };
  }
  return handlers as ServiceImpl<S>;
}
