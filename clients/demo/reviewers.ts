/** Who reviews: a model that the environment names, or the stand-in. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { OpenAiEndpointSchema } from "../../gen/moltwire/bus/v1/agent_pb.ts";

/** A server of the chat completions API, and its key: its value, or the variable that the server has it in. */
export type Reviewer = {
  readonly baseUrl: string;
  readonly model: string;
  readonly key: { readonly case: "apiKey" | "apiKeyEnv"; readonly value: string } | undefined;
};

const openAiUrl = "https://api.openai.com/v1";
const openAiModel = "gpt-4.1-mini";

const systemPrompt = `You review what a researcher found in the documents of a project. The message is JSON: a question, and quotes.
Answer with a JSON object: "verdict" is "answered", "partly" or "open"; "summary" says in one or two sentences what the quotes answer;
"missing" lists the words of the question that no quote speaks of.`;

/** What OPENAI_API_KEY, OPENAI_BASE_URL and OPENAI_MODEL name; undefined when neither of the first two is set. */
export function reviewerOf(env: NodeJS.ProcessEnv): Reviewer | undefined {
  const { OPENAI_API_KEY: key, OPENAI_BASE_URL: baseUrl, OPENAI_MODEL: model } = env;
  if (!key && !baseUrl) return undefined;
  return {
    baseUrl: baseUrl || openAiUrl,
    model: model || openAiModel,
    key: key ? { case: "apiKeyEnv", value: "OPENAI_API_KEY" } : undefined,
  };
}

/** The endpoint of the reviewer: it streams JSON by the contract's schema. */
export const reviewerEndpoint = ({ baseUrl, model, key }: Reviewer): MessageInitShape<typeof OpenAiEndpointSchema> => ({
  baseUrl,
  model,
  systemPrompt,
  temperature: 0,
  jsonOutput: true,
  stream: true,
  ...(key && { credential: key }),
});
