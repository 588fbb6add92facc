/** What the pages of the reference read of the OpenAPI document, and the document itself as it is sent. */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";

const file = join(import.meta.dirname, "../../../gen/openapi.json");

export type Schema = {
  readonly $ref?: string;
  readonly type?: string | readonly string[];
  readonly description?: string;
  readonly properties?: Readonly<Record<string, Schema>>;
  readonly required?: readonly string[];
  readonly items?: Schema;
  readonly additionalProperties?: Schema | boolean;
  readonly enum?: readonly string[];
  readonly anyOf?: readonly (Schema | boolean)[];
  readonly [limit: string]: unknown;
};

type Body = {
  readonly content: Readonly<
    Record<string, { readonly schema: Schema; readonly example?: unknown; readonly "x-moltwire-message"?: Schema }>
  >;
};

export type Operation = {
  readonly operationId: string;
  readonly tags: readonly [string];
  readonly summary: string;
  readonly description: string;
  readonly requestBody: Body;
  readonly responses: { readonly 200: Body };
  readonly "x-moltwire-stream"?: string;
};

export type OpenApi = {
  readonly info: { readonly version: string; readonly description: string };
  readonly tags: readonly { readonly name: string; readonly description: string }[];
  readonly paths: Readonly<Record<string, { readonly get?: Operation; readonly post: Operation }>>;
  readonly components: { readonly schemas: Readonly<Record<string, Schema>> };
};

/** The document, and a tag that changes with it. */
export type Document = { readonly text: Buffer; readonly etag: string; readonly api: OpenApi };

/** Reads the document that was generated with the code. */
export function readDocument(): Document {
  const text = readFileSync(file);
  const etag = `"${createHash("sha256").update(text).digest("base64url").slice(0, 22)}"`;
  return { text, etag, api: JSON.parse(text.toString("utf8")) as OpenApi };
}
