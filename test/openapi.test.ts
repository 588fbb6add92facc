import { type DescMessage, type DescMethod, fromJson, type JsonValue } from "@bufbuild/protobuf";
import { MethodOptions_IdempotencyLevel as Idempotency } from "@bufbuild/protobuf/wkt";
import { createValidator } from "@bufbuild/protovalidate";
import { Ajv2020 } from "ajv/dist/2020.js";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { services } from "../src/services.ts";
import { start, type World } from "./harness.ts";

type Json = Record<string, unknown>;
type Content = Record<string, { schema: Json; example?: Record<string, JsonValue>; "x-moltwire-message"?: Json }>;
type Operation = {
  operationId: string;
  security?: Json[];
  "x-moltwire-access": { role: string };
  parameters: { $ref?: string; name?: string; content?: Content; schema?: Json }[];
  requestBody: { content: Content };
  responses: { 200: { content: Content } };
};
type Api = {
  openapi: string;
  info: { version: string };
  tags: { name: string; description: string }[];
  paths: Record<string, { get?: Operation; post: Operation }>;
  components: { schemas: Record<string, { properties?: Record<string, Json>; allOf?: Json[]; not?: Json }> };
};

const json = "application/json";
const stream = "application/connect+json";

let world: World;
let api: Api;
let ajv: Ajv2020;
beforeAll(async () => {
  world = await start("sqlite", { registration: "open" });
  api = (await (await fetch(`${world.url}/openapi.json`)).json()) as Api;
  ajv = new Ajv2020({ strict: false, validateFormats: false, allErrors: true });
  ajv.addSchema({ $id: "api", ...api });
});
afterAll(async () => await world[Symbol.asyncDispose]());

const methods: readonly DescMethod[] = services.flatMap((service) => service.methods);
const unary = methods.filter(({ methodKind }) => methodKind === "unary");
const pathOf = (method: DescMethod): string => `/${method.parent.typeName}/${method.name}`;

/** What is wrong with a value by the document's schema of the message. */
function faults(schema: Json, value: unknown): string[] {
  const validate = ajv.getSchema(`api${schema.$ref}`)!;
  return validate(value) ? [] : validate.errors!.map(({ instancePath, message }) => `${instancePath} ${message}`);
}

describe("/openapi.json", () => {
  test("is OpenAPI 3.1 for everybody, is sent once and small", async () => {
    expect(api.openapi).toBe("3.1.0");
    const whole = await fetch(`${world.url}/openapi.json`);
    expect(whole.headers.get("content-type")).toBe("application/json; charset=utf-8");
    expect(whole.headers.get("content-encoding")).toBe("gzip");
    expect(Number(whole.headers.get("content-length"))).toBeLessThan(200_000);
    const etag = whole.headers.get("etag")!;
    const again = await fetch(`${world.url}/openapi.json`, { headers: { "if-none-match": etag } });
    expect([again.status, await again.text()]).toEqual([304, ""]);
    const plain = await fetch(`${world.url}/openapi.json`, { headers: { "accept-encoding": "gzip;q=0" } });
    expect(plain.headers.get("content-encoding")).toBeNull();
    expect(await plain.json()).toEqual(api);
  });

  test("has every method of the server and no other, with GET for those that change nothing", async () => {
    const listed = await fetch(world.url, { headers: { accept: "application/json" } });
    const { methods: served } = (await listed.json()) as { methods: string[] };
    expect(Object.keys(api.paths)).toEqual(served.map((name) => `/${name}`));
    for (const method of methods) {
      const { get, post } = api.paths[pathOf(method)]!;
      const readable = method.methodKind === "unary" && method.idempotency === Idempotency.NO_SIDE_EFFECTS;
      expect([method.name, get !== undefined]).toEqual([method.name, readable]);
      expect(Object.keys(post.requestBody.content)).toEqual([method.methodKind === "unary" ? json : stream]);
    }
    expect(api.tags.map(({ name }) => name)).toEqual(services.map(({ typeName }) => typeName));
  });

  test("refers to nothing that it has not, and names no operation twice", () => {
    const text = JSON.stringify(api);
    const refs = new Set([...text.matchAll(/"\$ref":"#\/([^"]+)"/g)].map(([, ref]) => ref!));
    expect(refs.size).toBeGreaterThan(300);
    for (const ref of refs) {
      const found = ref.split("/").reduce<unknown>((at, part) => (at as Json | undefined)?.[part], api);
      expect(found, ref).toBeDefined();
    }
    const used = new Set([...refs].map((ref) => ref.split("/").at(-1)));
    expect(Object.keys(api.components.schemas).filter((name) => !used.has(name))).toEqual([]);
    const ids = Object.values(api.paths).flatMap(({ get, post }) =>
      [get, post].flatMap((one) => one?.operationId ?? []),
    );
    expect(ids.length).toBeGreaterThan(200);
    expect(new Set(ids).size).toBe(ids.length);
  });

  test("has a comment on every service, method, message, field and enum", () => {
    const silent = services.flatMap(({ typeName }) =>
      api.tags.find(({ name }) => name === typeName)?.description ? [] : [typeName],
    );
    for (const [name, schema] of Object.entries(api.components.schemas)) {
      if (!name.startsWith("moltwire.") || /ErrorInfo|ErrorReason/.test(name)) continue;
      if (!(schema as Json).description) silent.push(name);
      for (const [field, one] of Object.entries(schema.properties ?? {}))
        if (!one.description) silent.push(`${name}.${field}`);
    }
    expect(silent).toEqual([]);
  });
});

describe("each request", () => {
  const validator = createValidator();
  /** Whether the server's own limits take it. */
  const takes = (message: DescMessage, value: JsonValue): boolean => {
    try {
      return validator.validate(message, fromJson(message, value)).kind === "valid";
    } catch {
      return false;
    }
  };
  const bodyOf = (method: DescMethod) => api.paths[pathOf(method)]!.post.requestBody.content[json]!;

  test("has an example that its schema and the server take", () => {
    for (const method of unary) {
      const { schema, example } = bodyOf(method);
      expect([method.name, faults(schema, example)]).toEqual([method.name, []]);
      expect([method.name, takes(method.input, example!)]).toEqual([method.name, true]);
    }
  });

  test("is refused by its schema where the server refuses it: without a field, too long, too small, too large, unknown", () => {
    const apart: string[] = [];
    let refused = 0;
    for (const method of unary) {
      const { schema, example } = bodyOf(method);
      const { properties = {} } = api.components.schemas[String(schema.$ref).split("/").at(-1)!]!;
      for (const [name, property] of Object.entries(properties)) {
        for (const changed of changes(name, property, example!)) {
          const byServer = !takes(method.input, changed);
          const bySchema = faults(schema, changed).length > 0;
          if (byServer !== bySchema) apart.push(`${method.name}.${name}: ${JSON.stringify(changed).slice(0, 200)}`);
          if (byServer) refused++;
        }
      }
    }
    expect(apart).toEqual([]);
    expect(refused).toBeGreaterThan(500);
  });

  /** The example without the field, and with values of it just beyond its limits. */
  function* changes(
    name: string,
    property: Json,
    example: Record<string, JsonValue>,
  ): Generator<Record<string, JsonValue>> {
    const { [name]: _, ...without } = example;
    yield without;
    const { maxLength, minLength, minimum, maximum, maxItems, items } = property as Record<string, number> & {
      items?: Json;
    };
    const isText = property.type === "string" && property.contentEncoding === undefined;
    if (isText && maxLength) yield { ...example, [name]: "a".repeat(maxLength + 1) };
    // Limits in bytes and addresses of mail are beyond JSON Schema: the document tells them in words.
    const isWhole = !/bytes in UTF-8/.test(String(property.description)) && property.format === undefined;
    if (isText && isWhole && maxLength && !property.pattern) yield { ...example, [name]: "é".repeat(maxLength) };
    if (isText && minLength) yield { ...example, [name]: "" };
    if (minimum !== undefined) yield { ...example, [name]: minimum - 1 };
    if (maximum !== undefined) yield { ...example, [name]: maximum + 1 };
    if (maximum !== undefined) yield { ...example, [name]: maximum };
    if (maxItems && items?.type === "string")
      yield { ...example, [name]: Array.from({ length: maxItems + 1 }, (_, n) => `a${n}`) };
    if (property.$ref) yield { ...example, [name]: "NO_SUCH_VALUE" };
  }
});

describe("a server does what the document says", () => {
  /** A call by path, verb and body alone, as a program would make it that knows nothing but the document. */
  async function call(path: string, verb: "get" | "post", body: unknown, key: string | undefined) {
    const operation = api.paths[path]![verb]!;
    const headers: Record<string, string> = key ? { authorization: `Bearer ${key}` } : {};
    const query = new URLSearchParams({ encoding: "json", connect: "v1", message: JSON.stringify(body) });
    const names = operation.parameters.flatMap(({ name }) => name ?? []);
    if (verb === "get") expect(names).toEqual(["message", "encoding", "connect"]);
    const answer =
      verb === "get"
        ? await fetch(`${world.url}${path}?${query}`, { headers })
        : await fetch(`${world.url}${path}`, {
            method: "POST",
            headers: { ...headers, "content-type": json },
            body: JSON.stringify(body),
          });
    expect(answer.headers.get("x-trace-id")).toMatch(/^[0-9a-f]{32}$/);
    return { operation, status: answer.status, body: (await answer.json()) as Json };
  }

  test("a task, an entry, a job and a message go through it, and each answer has its form", async () => {
    const key = world.operatorKey;
    const done = async (path: string, verb: "get" | "post", body: unknown): Promise<Json> => {
      const { operation, status, body: answer } = await call(path, verb, body, key);
      expect([path, status, answer]).toEqual([path, 200, expect.anything()]);
      expect([path, faults(operation.responses[200].content[json]!.schema, answer)]).toEqual([path, []]);
      return answer;
    };
    const { agent } = (await done("/moltwire.bus.v1.AgentService/RegisterAgent", "post", {
      name: "parrot",
      capabilities: ["repeat"],
      endpoint: { echo: {} },
    })) as { agent: { agentId: string } };
    await done("/moltwire.bus.v1.ContractService/RegisterContract", "post", {
      contractId: "repeat",
      version: "1.0.0",
      inputSchema: { required: ["text"] },
    });
    const { task } = (await done("/moltwire.bus.v1.BusService/SubmitTask", "post", {
      contractId: "repeat",
      input: { text: "hello" },
    })) as { task: { traceId: string; output: unknown } };
    expect(task.output).toEqual({ text: "hello" });
    await done("/moltwire.bus.v1.TraceService/GetTrace", "get", { traceId: task.traceId });
    const { agentId } = agent;
    await done("/moltwire.memory.v1.MemoryService/SetEntry", "post", {
      agentId,
      write: { key: "k", value: { json: 1 } },
    });
    const { entry } = (await done("/moltwire.memory.v1.MemoryService/GetEntry", "get", { agentId, key: "k" })) as {
      entry: { value: unknown };
    };
    expect(entry.value).toEqual({ json: 1 });
    await done("/moltwire.queue.v1.QueueService/SubmitJob", "post", { agentId, job: { payload: { json: [1] } } });
    const { jobs } = (await done("/moltwire.queue.v1.QueueService/ClaimJobs", "post", { agentId })) as {
      jobs: unknown[];
    };
    expect(jobs).toHaveLength(1);
    await done("/moltwire.relay.v1.RelayService/Send", "post", {
      agentId,
      toAgentId: agentId,
      payload: { json: "hi" },
    });
    await done("/moltwire.relay.v1.RelayService/ListInbox", "get", { agentId });
  });

  test("every method takes its example: it does it, or fails in the form of an error with a reason that the document names", async () => {
    const seen: Record<number, number> = {};
    const { adminKey, agent } = await world.org();
    const unusable: string[] = [];
    const keys: Record<string, string> = { AGENT: (await agent()).key, ORG: adminKey };
    for (const method of unary) {
      const path = pathOf(method);
      const { example } = api.paths[path]!.post.requestBody.content[json]!;
      for (const verb of api.paths[path]!.get ? (["get", "post"] as const) : (["post"] as const)) {
        const { role } = api.paths[path]!.post["x-moltwire-access"];
        const { operation, status, body } = await call(path, verb, example, keys[role] ?? world.operatorKey);
        seen[status] = (seen[status] ?? 0) + 1;
        if (status === 200) {
          const { schema } = operation.responses[200].content[json]!;
          expect([path, faults(schema, body)]).toEqual([path, []]);
          continue;
        }
        expect([path, faults({ $ref: "#/components/schemas/connect.Error" }, body)]).toEqual([path, []]);
        const info = (body as { details: { type: string; debug?: Json }[] }).details.find(
          ({ type }) => type === "google.rpc.ErrorInfo",
        );
        expect([path, faults({ $ref: "#/components/schemas/moltwire.ErrorInfo" }, info?.debug)]).toEqual([path, []]);
        const reason = String(info?.debug?.reason);
        if (["INVALID_REQUEST", "MALFORMED_REQUEST", "UNIMPLEMENTED", "INTERNAL"].includes(reason))
          unusable.push(`${path}: ${body.message}`);
      }
    }
    expect(unusable).toEqual([]);
    expect(seen[200]).toBeGreaterThan(70);
  });

  test("a method that needs no key is called without one, and no other", async () => {
    for (const method of unary) {
      const path = pathOf(method);
      const { post } = api.paths[path]!;
      const isOpen = post.security?.some((one) => Object.keys(one).length === 0) ?? false;
      const { body } = await call(path, "post", post.requestBody.content[json]!.example, undefined);
      // The calls of a batch are answered each for itself.
      const refused = !("results" in body) && JSON.stringify(body).includes('"KEY_MISSING"');
      expect([path, refused]).toEqual([path, !isOpen]);
    }
  });
});

describe("/docs", () => {
  const read = async (path: string) => {
    const answer = await fetch(`${world.url}${path}`);
    expect([path, answer.status, answer.headers.get("content-type")]).toEqual([path, 200, "text/html; charset=utf-8"]);
    const policy = answer.headers.get("content-security-policy");
    expect(policy).toMatch(
      /^default-src 'none'; style-src 'sha256-[\w+/]+=*'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'$/,
    );
    const text = await answer.text();
    expect(text).not.toMatch(/<script|<link|<img|\bon\w+="|src=|href="(?!\/|#)/);
    return text;
  };

  test("tells of every method and of every error, in pages without scripts and without anything from elsewhere, whose links all lead somewhere", async () => {
    const pages = new Map<string, string>();
    for (const path of ["/docs", "/docs/errors", ...services.map(({ typeName }) => `/docs/${typeName}`)])
      pages.set(path, await read(path));
    for (const { parent, name } of methods) {
      expect(pages.get("/docs")).toContain(`/docs/${parent.typeName}#${name}`);
      expect(pages.get(`/docs/${parent.typeName}`)).toContain(`<code>/${parent.typeName}/${name}</code>`);
    }
    expect(pages.get("/docs/errors")).toContain("BUDGET_EXCEEDED");
    for (const [from, text] of pages) {
      for (const [, href] of text.matchAll(/href="([^"]+)"/g)) {
        const [path, anchor] = href!.split("#");
        const target = path ? pages.get(path) : text;
        if (path === "/openapi.json") continue;
        expect(target, `${href} in ${from}`).toBeDefined();
        if (anchor) expect(target!.includes(`id="${anchor}"`), `${href} in ${from}`).toBe(true);
      }
    }
  });

  test("has no page for what is no service, and says nothing of it", async () => {
    for (const name of ["nothing", "%3Cscript%3E", "__proto__", "..%2fopenapi.json"]) {
      const answer = await fetch(`${world.url}/docs/${name}`);
      expect(answer.status).toBe(404);
      expect(await answer.text()).not.toContain(decodeURIComponent(name));
    }
  });
});
