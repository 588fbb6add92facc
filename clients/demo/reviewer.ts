/**
 * The demo's reviewer where no model is at hand: a server of OpenAI's chat completions API that reviews by counting words and ranking sentences.
 * It writes nothing that was not given to it.
 *
 * node reviewer.ts [PORT]: says where it listens on standard error, and ends when its standard input does. With REVIEWER_KEY it wants that key.
 */
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { ChatError, chatServer, type Model } from "./chat.ts";
import { sentencesOf, summarise } from "./rank.ts";
import { findingsIn, review } from "./review.ts";

export const standInModel = "extract-1";
const summarySentences = 3;

/** Findings are reviewed, any other text is told in its most telling sentences. */
export const reviewerModel: Model = (message, json) => {
  const findings = findingsIn(message);
  if (findings) return json ? JSON.stringify(review(findings)) : review(findings).summary;
  if (json)
    throw new ChatError(400, "invalid_request_error", "as JSON only reviews are written: send a question and quotes");
  return summarise(sentencesOf(message), summarySentences);
};

if (import.meta.main) {
  const server = createServer(chatServer(standInModel, reviewerModel, process.env.REVIEWER_KEY));
  server.listen(Number(process.argv[2] ?? 0), "127.0.0.1", () => {
    const { port } = server.address() as AddressInfo;
    console.error(`listening on http://127.0.0.1:${port}/v1 as ${standInModel}`);
  });
  process.stdin.resume().once("end", () => process.exit(0));
}
