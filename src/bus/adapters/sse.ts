/** Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html), as far as their data goes. */
import { unusable } from "./faults.ts";

/** The data of each event. Throws AGENT_BAD_RESPONSE for one of more than `maxChars`. */
export async function* eventData(body: AsyncIterable<Uint8Array>, maxChars: number): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  /** What has no line end yet. */
  let begun: string[] = [];
  let begunChars = 0;
  let data: string[] = [];
  let dataChars = 0;
  for await (const chunk of body) {
    const fresh = decoder.decode(chunk, { stream: true });
    begun.push(fresh);
    begunChars += fresh.length;
    if (/[\r\n]/.test(fresh)) {
      // A CR at the end stays: an LF may follow, and be of the same line end.
      const lines = begun.join("").split(/\r\n|\n|\r(?!$)/);
      const rest = lines.pop()!;
      begun = [rest];
      begunChars = rest.length;
      for (const line of lines) {
        if (line === "") {
          if (data.length > 0) yield data.join("\n");
          data = [];
          dataChars = 0;
        } else if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
          dataChars += line.length;
        }
      }
    }
    if (begunChars + dataChars > maxChars)
      throw unusable(`an event of its stream has more than ${maxChars} characters`);
  }
}
