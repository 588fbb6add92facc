import { createServer } from "file:///tmp/trees/fed7/src/server.ts";

async function shout({ kind }, { input, chunk }, signal) {
  const text = input.text.toUpperCase() + kind.value.config.mark;
  await chunk(text); // WatchTask tells it at once
  return { output: { shouted: text }, usage: { inputTokens: 1, outputTokens: 1, model: "shout-1" } };
}
const server = await createServer({ data: ":memory:", port: 0, adapters: { shout } });
console.log(await server.listen(), server.operatorKey);
