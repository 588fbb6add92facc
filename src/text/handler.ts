import { createHash } from "node:crypto";
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { ServiceImpl } from "@connectrpc/connect";
import {
  type ProcessResponseSchema,
  TextOperation,
  type TextService,
} from "../../gen/moltwire/text/v1/text_service_pb.ts";
import type { App } from "../app.ts";
import { badField } from "../errors.ts";
import { query } from "../rpc/query.ts";
import { decodeBase64 } from "./base64.ts";
import { emailsIn, urlsIn } from "./extract.ts";
import { charCount, sentencesOf, uniqueLines, wordCount } from "./measure.ts";

type Result = NonNullable<MessageInitShape<typeof ProcessResponseSchema>["result"]>;

export const textHandler = (app: App): ServiceImpl<typeof TextService> => ({
  process: query(app, async ({ operation, input }) => {
    if (input.case !== "data") return { result: ofText(operation, input.value ?? "") };
    const result = ofBytes(operation, input.value);
    if (!result) throw badField("data", "this operation takes `text`");
    return { result };
  }),
});

function ofText(operation: TextOperation, text: string): Result {
  switch (operation) {
    case TextOperation.WORD_COUNT:
      return { case: "wordCount", value: wordCount(text) };
    case TextOperation.CHAR_COUNT:
      return { case: "charCount", value: charCount(text) };
    case TextOperation.EXTRACT_URLS:
      return { case: "list", value: { items: urlsIn(text) } };
    case TextOperation.EXTRACT_EMAILS:
      return { case: "list", value: { items: emailsIn(text) } };
    case TextOperation.TOKENIZE_SENTENCES:
      return { case: "list", value: { items: sentencesOf(text) } };
    case TextOperation.DEDUPLICATE_LINES:
      return { case: "text", value: uniqueLines(text) };
    case TextOperation.BASE64_DECODE:
      return { case: "decoded", value: decoded(text) };
    default: {
      const result = ofBytes(operation, Buffer.from(text));
      if (!result) throw badField("operation", "is none");
      return result;
    }
  }
}

function ofBytes(operation: TextOperation, data: Uint8Array): Result | undefined {
  switch (operation) {
    case TextOperation.HASH_SHA256:
      return { case: "text", value: createHash("sha256").update(data).digest("hex") };
    case TextOperation.BASE64_ENCODE:
      return { case: "text", value: Buffer.from(data).toString("base64") };
    default:
      return undefined;
  }
}

function decoded(text: string): { data: Uint8Array; text?: string } {
  const data = decodeBase64(text);
  if (!data) throw badField("text", "is not base64");
  try {
    return { data, text: new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(data) };
  } catch {
    return { data };
  }
}
