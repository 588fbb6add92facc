/** What `demo --keep` leaves to play with. */
import { paint } from "../cli/output.ts";
import type { Made } from "./setup.ts";

/** A server that stays up. */
export type Kept = {
  readonly url: string;
  readonly folder: string;
  readonly operatorKey: string;
  readonly made: Made;
  readonly traceId: string | undefined;
  readonly question: string;
};

/** Address, keys and commands to copy, as lines. */
export function renderKept({ url, folder, operatorKey, made, traceId, question }: Kept): string[] {
  const input = JSON.stringify({ question });
  const body = JSON.stringify({ contractId: "research/answer", input: { question } });
  return [
    "",
    paint("bold", "The server stays up until Ctrl-C."),
    `  URL           ${url}`,
    `  data          ${folder}`,
    `  planner key   ${made.plannerKey}`,
    `  org key       ${made.orgKey}`,
    `  operator key  ${operatorKey}`,
    "",
    "To copy:",
    `  export MOLTWIRE_URL=${url}`,
    `  export MOLTWIRE_API_KEY=${made.plannerKey}`,
    `  node clients/cli/main.ts submit research/answer ${quote(input)}`,
    ...(traceId === undefined ? [] : [`  node clients/cli/main.ts trace get ${traceId}`]),
    "  node clients/cli/main.ts trace tail --from-start",
    "  node clients/cli/main.ts doctor",
    '  curl -s "$MOLTWIRE_URL/moltwire.bus.v1.BusService/SubmitTask" \\',
    '    -H "authorization: Bearer $MOLTWIRE_API_KEY" -H "content-type: application/json" \\',
    `    -d ${quote(body)}`,
    "",
  ];
}

/** The same for programs. */
export const keptJson = ({ url, folder, operatorKey, made, traceId }: Kept) => ({
  url,
  folder,
  plannerKey: made.plannerKey,
  orgKey: made.orgKey,
  operatorKey,
  traceId,
});

/** A text as one word of a POSIX shell. */
const quote = (text: string): string => `'${text.replaceAll("'", "'\\''")}'`;
