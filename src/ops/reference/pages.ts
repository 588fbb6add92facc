/** The reference for people: a page that lists all methods, and one for each service with its methods and the messages they take and give. */
import type { OpenApi, Operation, Schema } from "./document.ts";
import { escaped, page, prose } from "./markup.ts";

const prefix = "#/components/schemas/";
const errorSchemas = ["connect.Error", "connect.ErrorDetail", "moltwire.ErrorInfo", "moltwire.ErrorReason"];

/** The page of all services. */
export function overviewPage(api: OpenApi): string {
  const lists = api.tags.map(({ name, description }) => {
    const rows = methodsOf(api, name).map(
      ({ path, post }) =>
        `<tr><td><a href="/docs/${escaped(name)}#${escaped(methodOf(path))}">${escaped(methodOf(path))}</a></td><td>${escaped(post.summary)}</td></tr>`,
    );
    return `<h2><a href="/docs/${escaped(name)}">${escaped(name)}</a></h2>${prose(description.split("\n\n")[0]!)}<table>${rows.join("")}</table>`;
  });
  return page(
    "Moltwire API",
    `<h1>Moltwire API ${escaped(api.info.version)}</h1>${prose(api.info.description)}
<p>For programs: <a href="/openapi.json">openapi.json</a> (OpenAPI 3.1). How a call fails: <a href="/docs/errors">errors</a>.</p>${lists.join("")}`,
  );
}

/** The page of one service; undefined: there is none of this name. */
export function servicePage(api: OpenApi, name: string): string | undefined {
  const tag = api.tags.find((one) => one.name === name);
  if (!tag) return undefined;
  const methods = methodsOf(api, name);
  const messages = reachable(
    api,
    methods.flatMap(({ post }) => [messageOf(post.requestBody), messageOf(post.responses[200])]),
  );
  const sections = methods.map(({ path, get, post }) => methodSection(path, get !== undefined, post));
  const title = `<p><a href="/docs">All services</a></p><h1>${escaped(name)}</h1>${prose(tag.description)}`;
  return page(
    name,
    `${title}${sections.join("")}<h2>Messages</h2>${messages.map((one) => schemaSection(api, one)).join("")}`,
  );
}

/** The page of errors. */
export const errorsPage = (api: OpenApi): string =>
  page(
    "Errors",
    `<p><a href="/docs">All services</a></p><h1>Errors</h1>${errorSchemas.map((name) => schemaSection(api, name)).join("")}`,
  );

const methodsOf = (api: OpenApi, service: string) =>
  Object.entries(api.paths).flatMap(([path, { get, post }]) => (post.tags[0] === service ? [{ path, get, post }] : []));

const methodOf = (path: string): string => path.slice(path.lastIndexOf("/") + 1);

function methodSection(path: string, canGet: boolean, operation: Operation): string {
  const [body] = Object.values(operation.requestBody.content);
  const request = messageOf(operation.requestBody);
  const answer = messageOf(operation.responses[200]);
  const streams = operation["x-moltwire-stream"];
  const verbs = streams ? "POST, a stream" : canGet ? "POST or GET" : "POST";
  return `<h2 id="${escaped(methodOf(path))}">${escaped(methodOf(path))}</h2><p class="path">${verbs} <code>${escaped(path)}</code></p>
${prose(operation.description)}<p>Takes ${link(request)}, answers ${streams ? "a stream of " : ""}${link(answer)}, or fails with an <a href="/docs/errors">error</a>.</p>
${streams ? "" : `<pre><code>${escaped(curl(path, body?.example))}</code></pre>`}`;
}

const curl = (path: string, example: unknown): string =>
  [
    `curl "$MOLTWIRE_URL${path}"`,
    `-H "authorization: Bearer $MOLTWIRE_API_KEY" -H 'content-type: application/json'`,
    `-d ${quoted(JSON.stringify(example))}`,
  ].join(" \\\n  ");

/** One word of a shell. */
const quoted = (text: string): string => `'${text.replaceAll("'", "'\\''")}'`;

function messageOf(body: Operation["requestBody"]): string {
  const [only] = Object.values(body.content);
  return (only?.["x-moltwire-message"] ?? only?.schema)?.$ref?.slice(prefix.length) ?? "";
}

const shortName = (name: string): string => name.slice(name.lastIndexOf(".") + 1);
const link = (name: string): string => `<a href="#${escaped(name)}">${escaped(shortName(name))}</a>`;

function schemaSection(api: OpenApi, name: string): string {
  const schema = api.components.schemas[name]!;
  const rows = Object.entries(schema.properties ?? {}).map(([field, one]) => {
    const must = schema.required?.includes(field) ? "<br>required" : "";
    return `<tr><td><code>${escaped(field)}</code>${must}</td><td>${typeOf(one)}${limitsOf(one)}</td><td>${prose(one.description ?? "")}</td></tr>`;
  });
  const table = rows.length > 0 ? `<table>${rows.join("")}</table>` : "";
  return `<h3 id="${escaped(name)}">${escaped(shortName(name))}</h3>${prose(schema.description ?? "")}${table}`;
}

/** The type of a value in a few words, with a link to a message's. */
function typeOf(schema: Schema): string {
  if (schema.$ref) return link(schema.$ref.slice(prefix.length));
  if (schema.items) return `list of ${typeOf(schema.items)}`;
  if (schema.additionalProperties && schema.additionalProperties !== true)
    return `map to ${typeOf(schema.additionalProperties)}`;
  if (schema.anyOf)
    return schema.anyOf.map((one) => (typeof one === "boolean" ? "anything" : typeOf(one))).join(" or ");
  if (schema.format === "int64") return "int64";
  return escaped(String(schema.format ?? schema.type ?? "any JSON"));
}

const limitNames: Readonly<Record<string, string>> = {
  minLength: "at least %s characters",
  maxLength: "at most %s characters",
  pattern: "like %s",
  minimum: "%s or more",
  maximum: "%s or less",
  exclusiveMinimum: "more than %s",
  exclusiveMaximum: "less than %s",
  minItems: "at least %s",
  maxItems: "at most %s",
  maxProperties: "at most %s",
  const: "only %s",
};

function limitsOf(schema: Schema): string {
  // The patterns of types that protobuf brings say nothing to people.
  const known = schema.format === "int64" || /^\^-\?\[0-9\]/.test(String(schema.pattern ?? ""));
  const words = Object.entries(limitNames).flatMap(([name, text]) =>
    schema[name] === undefined || (known && name === "pattern") ? [] : [text.replace("%s", () => String(schema[name]))],
  );
  return words.length > 0 ? `<br><span class="limits">${escaped(words.join(", "))}</span>` : "";
}

/** These schemas and all that they refer to, each once, in the order in which they are met. */
function reachable(api: OpenApi, names: readonly string[]): readonly string[] {
  const found = new Set<string>();
  const visit = (name: string): void => {
    if (found.has(name)) return;
    found.add(name);
    for (const [, next] of JSON.stringify(api.components.schemas[name]).matchAll(/"#\/components\/schemas\/([^"]+)"/g))
      visit(next!);
  };
  for (const name of names) visit(name);
  return [...found];
}
