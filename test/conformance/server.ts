/**
 * The servers under test: for each connection to a local socket a whole Moltwire server that serves the suite's service too, behind its own port, gate, limits and
 * interceptors, in clear or over TLS. A connection brings what the suite asks for and gets where that server listens, both one message behind four bytes
 * with its length, big-endian; the server goes when the connection does. They are in one process, because the suite waits ten seconds for each, and a busy machine
 * takes longer to load one.
 */
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer as createNetServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { create, fromBinary, setExtension, toBinary } from "@bufbuild/protobuf";
import { MethodOptionsSchema } from "@bufbuild/protobuf/wkt";
import { AccessSchema, access, Kind, Role } from "../../gen/moltwire/api/v1/access_pb.ts";
import { createServer, type ServerOptions } from "../../src/server.ts";
import {
  type ServerCompatRequest,
  ServerCompatRequestSchema,
  ServerCompatResponseSchema,
} from "./gen/connectrpc/conformance/v1/server_compat_pb.ts";
import { ConformanceService } from "./gen/connectrpc/conformance/v1/service_pb.ts";
import { conformanceRoutes } from "./service.ts";

const maxRequestBytes = 1_048_576;
const drainMs = 1_000;
const host = "127.0.0.1";

/** Begins to listen at the path; `close` resolves when all servers are gone. */
export async function serveSuite(path: string): Promise<{ close(): Promise<void> }> {
  declareOpen();
  const under = new Set<Promise<void>>();
  const door = createNetServer((connection) => {
    const life = live(connection)
      .catch((error: unknown) => console.error(`conformance: a server failed: ${(error as Error).stack ?? error}`))
      .finally(() => {
        connection.destroy();
        under.delete(life);
      });
    under.add(life);
  });
  door.listen(path);
  await once(door, "listening");
  return {
    async close() {
      door.close();
      await Promise.all(under);
    },
  };
}

/** One server, from what is asked for to the end of the connection. */
async function live(connection: Socket): Promise<void> {
  const gone = new Promise<void>((resolve) => connection.once("close", () => resolve()));
  const asked = fromBinary(ServerCompatRequestSchema, await readSized(connection));
  using files = filesOf(asked);
  const server = await createServer({
    ...{ host, port: 0, data: ":memory:", logLevel: "error", drainMs },
    routes: conformanceRoutes,
    ...(asked.messageReceiveLimit && { readMaxBytes: asked.messageReceiveLimit }),
    ...files.options,
  });
  try {
    const port = Number(new URL(await server.listen()).port);
    const pemCert = asked.useTls ? asked.serverCreds?.cert : undefined;
    const answer = create(ServerCompatResponseSchema, { host, port, ...(pemCert && { pemCert }) });
    connection.write(sized(toBinary(ServerCompatResponseSchema, answer)));
    await gone;
  } finally {
    await server.close();
  }
}

/** The suite's methods declare no role, and its clients send no key: whoever calls may. */
function declareOpen(): void {
  for (const { proto } of ConformanceService.methods) {
    proto.options ??= create(MethodOptionsSchema);
    setExtension(proto.options, access, create(AccessSchema, { role: Role.PUBLIC, kind: Kind.QUERY }));
  }
}

/** The settings for the certificates that the suite has made, in files for the time of the server. */
function filesOf({
  useTls,
  serverCreds,
  clientTlsCert,
}: ServerCompatRequest): Disposable & { options: Partial<ServerOptions> } {
  if (!useTls) return { options: {}, [Symbol.dispose]: () => {} };
  if (!serverCreds) throw new Error("there are no credentials for TLS");
  const folder = mkdtempSync(join(tmpdir(), "moltwire-conformance-"));
  const put = (name: string, bytes: Uint8Array): string => {
    writeFileSync(join(folder, name), bytes, { mode: 0o600 });
    return join(folder, name);
  };
  const tlsCert = put("cert.pem", serverCreds.cert);
  const tlsKey = put("key.pem", serverCreds.key);
  const options = { tlsCert, tlsKey, ...(clientTlsCert.length > 0 && { tlsClientCa: put("ca.pem", clientTlsCert) }) };
  return { options, [Symbol.dispose]: () => rmSync(folder, { recursive: true, force: true }) };
}

/** The first message of a stream, which stays open. */
function readSized(input: Socket): Promise<Buffer> {
  const { promise, resolve, reject } = Promise.withResolvers<Buffer>();
  let bytes = Buffer.alloc(0);
  input.on("error", reject).once("end", () => reject(new Error("it ended early")));
  input.on("data", (chunk: Buffer) => {
    bytes = Buffer.concat([bytes, chunk]);
    if (bytes.length < 4) return;
    const length = bytes.readUInt32BE(0);
    if (length > maxRequestBytes) reject(new Error(`a request of ${length} bytes`));
    else if (bytes.length >= 4 + length) resolve(bytes.subarray(4, 4 + length));
  });
  return promise;
}

function sized(message: Uint8Array): Buffer {
  const length = Buffer.alloc(4);
  length.writeUInt32BE(message.length);
  return Buffer.concat([length, message]);
}
