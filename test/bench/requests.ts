/** The requests of the bench, as bytes. */
import { create, type DescMethod, type MessageInitShape, toBinary, toJsonString } from "@bufbuild/protobuf";
import type { Template } from "./load.ts";

/** Where a number is to be that differs in each request. */
export const counterMark = "00000000";

/** A Connect unary call (https://connectrpc.com/docs/protocol#unary-request) as a whole HTTP/1.1 request. */
export function rpc<M extends DescMethod>(
  method: M,
  message: MessageInitShape<M["input"]>,
  { key, json = false }: { readonly key: string; readonly json?: boolean },
): Template {
  const body = json
    ? Buffer.from(toJsonString(method.input, create(method.input, message)))
    : toBinary(method.input, create(method.input, message));
  const type = json ? "application/json" : "application/proto";
  return post(`/${method.parent.typeName}/${method.name}`, body, type, key);
}

/** A POST as a whole HTTP/1.1 request. */
export function post(path: string, body: Uint8Array, type: string, key: string): Template {
  const head = [
    `POST ${path} HTTP/1.1`,
    "host: 127.0.0.1",
    `content-type: ${type}`,
    "connect-protocol-version: 1",
    `authorization: Bearer ${key}`,
    `content-length: ${body.length}`,
  ].join("\r\n");
  const bytes = Buffer.concat([Buffer.from(`${head}\r\n\r\n`), body]);
  const counterAt = bytes.indexOf(counterMark, head.length, "latin1");
  return { bytes, counterAt: counterAt < 0 ? undefined : counterAt };
}
