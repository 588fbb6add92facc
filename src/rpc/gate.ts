import type { DescMethod } from "@bufbuild/protobuf";
import type { HandlerContext } from "@connectrpc/connect";
import type { App } from "../app.ts";
import { browserKey } from "../console/browser.ts";
import { signedIn } from "../console/session.ts";
import { Fault } from "../errors.ts";
import { checkAccess, methodName } from "./access.ts";
import { authenticate, keyInHeaders } from "./auth.ts";
import { type Caller, callerKey, traceKey } from "./caller.ts";
import { clientAddressKey } from "./client-address.ts";
import { asConnectError } from "./errors.ts";
import { isOpenDoor, takeRequest, takeStranger } from "./limits.ts";
import { beganKey, callEnded } from "./observe.ts";
import { traceContext } from "./trace-context.ts";

/** What a call passes before its body is read: where it stands in a trace, whose key or session it has, whether that may call this method now. */
export const gate =
  (app: App, unbuilt: ReadonlySet<DescMethod>): ((context: HandlerContext) => Promise<void>) =>
  (context) =>
    admit(app, unbuilt, context, false, () => {
      const { requestHeader, values } = context;
      const key = keyInHeaders(
        requestHeader.get("authorization") ?? undefined,
        requestHeader.get("x-api-key") ?? undefined,
      );
      const address = values.get(clientAddressKey);
      return key === undefined ? signedIn(app, values.get(browserKey), address) : authenticate(app, key, address);
    });

/** What a call of a batch passes, whose caller the batch has told. `isCounted`: the batch itself has been counted for it. */
export const innerGate =
  (app: App, unbuilt: ReadonlySet<DescMethod>) =>
  (context: HandlerContext, caller: Caller, isCounted: boolean): Promise<void> =>
    admit(app, unbuilt, context, isCounted, async () => caller);

async function admit(
  app: App,
  unbuilt: ReadonlySet<DescMethod>,
  context: HandlerContext,
  isCounted: boolean,
  whoCalls: () => Promise<Caller>,
): Promise<void> {
  const { requestHeader, responseHeader, values, method } = context;
  const trace = traceContext(requestHeader.get("traceparent"), app.ids);
  values.set(traceKey, trace);
  values.set(beganKey, { atMs: performance.now(), timeMs: app.clock.now(), protocol: context.protocolName });
  responseHeader.set("x-trace-id", trace.traceId);
  const address = values.get(clientAddressKey);
  const letIn = async () => {
    const caller = await whoCalls();
    values.set(callerKey, caller);
    checkAccess(caller, method);
    return caller;
  };
  try {
    const caller = await letIn().catch(async (error: unknown) => {
      if (!isCounted) await takeStranger(app.limiters, error, address, responseHeader);
      throw error;
    });
    if (unbuilt.has(method)) {
      throw new Fault("UNIMPLEMENTED", `${methodName(method)} is not built yet`, { method: methodName(method) });
    }
    if (!isCounted || isOpenDoor(method)) await takeRequest(app.limiters, caller, method, address, responseHeader);
  } catch (error) {
    const refusal = asConnectError(app, error, method, trace.traceId, context.signal);
    callEnded(app, method, values, refusal);
    throw refusal;
  }
}
