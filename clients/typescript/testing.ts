/** A server in memory, for the tests of programs that use one. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import { Role } from "../../gen/moltwire/api/v1/access_pb.ts";
import type { RegisterAgentRequestSchema } from "../../gen/moltwire/bus/v1/agent_service_pb.ts";
import { type ConnectOptions, connect, type Moltwire } from "./index.ts";
import { randomName } from "./retry.ts";

/** `createServer` of `moltwire/server`. */
export type CreateServer = (options: never) => Promise<{
  readonly operatorKey?: string | undefined;
  listen(): Promise<string>;
  close(): Promise<void>;
}>;

export type TestAgent = { readonly agentId: string; readonly apiKey: string; readonly as: Moltwire };

export type TestServer = AsyncDisposable & {
  readonly url: string;
  readonly operatorKey: string;
  /** A client with the operator's key. */
  readonly operator: Moltwire;
  /** An organisation of its own, with an administrator's client and a way to make agents. */
  org(): Promise<{
    readonly orgId: string;
    readonly apiKey: string;
    readonly admin: Moltwire;
    agent(
      init?: Partial<Extract<MessageInitShape<typeof RegisterAgentRequestSchema>, { $typeName?: never }>>,
    ): Promise<TestAgent>;
  }>;
  /** Ends it; what it kept is gone. */
  close(): Promise<void>;
};

/**
 * Starts a server in this process that keeps everything in memory, on a free port of the loopback interface. It may call agents there, and sets no rate limit; `options` are
 * those of `createServer`.
 *
 * @example
 * ```ts
 * import { testServer } from "@moltwire/client/testing";
 * import { createServer } from "moltwire/server";
 *
 * await using server = await testServer(createServer);
 * const { agent } = await server.org();
 * const { as } = await agent();
 * await as.memory.set("answer", 42);
 * console.log(await as.memory.get("answer")); // 42
 * ```
 */
export async function testServer(
  createServer: CreateServer,
  options: Record<string, unknown> = {},
  client: Omit<ConnectOptions, "url" | "apiKey"> = {},
): Promise<TestServer> {
  const quiet = { data: ":memory:", port: 0, rateLimit: 0, egressAllow: ["127.0.0.1"], logLevel: "silent" };
  const server = await createServer({ ...quiet, ...options } as never);
  const url = await server.listen();
  const operatorKey = server.operatorKey ?? "";
  const as = (apiKey: string) => connect({ ...client, url, apiKey });
  const operator = as(operatorKey);
  const close = () => server.close();
  return {
    url,
    operatorKey,
    operator,
    close,
    [Symbol.asyncDispose]: close,
    async org() {
      const { organization } = await operator.organizations.createOrganization({ name: `test-${randomName()}` });
      const { orgId } = organization!;
      const { secret: apiKey } = await operator.keys.createApiKey({ orgId, role: Role.ORG });
      const admin = as(apiKey);
      return {
        orgId,
        apiKey,
        admin,
        async agent(init = {}) {
          const { agent } = await admin.agents.registerAgent({ name: `agent-${randomName()}`, ...init });
          const { agentId } = agent!;
          const { secret } = await admin.keys.createApiKey({ agentId });
          return { agentId, apiKey: secret, as: as(secret) };
        },
      };
    },
  };
}
