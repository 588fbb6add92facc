/** The way to the server that this page came from: the public protocol, with the session's cookie. No key is ever held here. */
import { Code, ConnectError, type Interceptor } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-web";

const signedOut = new EventTarget();

/** Calls back when a call was refused because nobody is signed in any more. */
export function onSignedOut(listener: () => void): () => void {
  signedOut.addEventListener("signed-out", listener);
  return () => signedOut.removeEventListener("signed-out", listener);
}

/** For streams, which are refused only once they are read. */
export const tellSignedOut = (): boolean => signedOut.dispatchEvent(new Event("signed-out"));

const noticeEnd: Interceptor = (next) => async (request) => {
  try {
    return await next(request);
  } catch (error) {
    // A wrong password is refused so too, and ends nothing.
    if (ConnectError.from(error).code === Code.Unauthenticated && request.method.name !== "SignIn") tellSignedOut();
    throw error;
  }
};

export const transport = createConnectTransport({
  baseUrl: window.location.origin,
  useBinaryFormat: true,
  interceptors: [noticeEnd],
});
