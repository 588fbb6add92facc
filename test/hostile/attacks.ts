/** Every kind of attack, on one screen. */
import type { Attack } from "./attack.ts";
import { compressionBombs } from "./attacks/bombs.ts";
import { continuationFlood } from "./attacks/continuation-flood.ts";
import { deepMessages } from "./attacks/deep-messages.ts";
import { emptyDataFlood } from "./attacks/empty-data-flood.ts";
import { halfOpen } from "./attacks/half-open.ts";
import { headerBombs } from "./attacks/header-bombs.ts";
import { idleSessions } from "./attacks/idle-sessions.ts";
import { lengthPrefixes } from "./attacks/length-prefixes.ts";
import { mutatedMessages } from "./attacks/mutated-messages.ts";
import { oddRequests } from "./attacks/odd-requests.ts";
import { partialPrefaces } from "./attacks/partial-prefaces.ts";
import { pingFlood } from "./attacks/ping-flood.ts";
import { pipelined } from "./attacks/pipelined.ts";
import { randomBytes } from "./attacks/random-bytes.ts";
import { rapidReset } from "./attacks/rapid-reset.ts";
import { schemas } from "./attacks/schemas.ts";
import { settingsFlood } from "./attacks/settings-flood.ts";
import { slowHeaders } from "./attacks/slow-headers.ts";
import { slowReaders } from "./attacks/slow-readers.ts";
import { slowStreams } from "./attacks/slow-streams.ts";
import { unknownMethods } from "./attacks/unknown-methods.ts";
import { wrongTypes } from "./attacks/wrong-types.ts";

export const attacks: readonly Attack[] = [
  randomBytes,
  mutatedMessages,
  wrongTypes,
  deepMessages,
  lengthPrefixes,
  compressionBombs,
  unknownMethods,
  oddRequests,
  pipelined,
  partialPrefaces,
  halfOpen,
  slowHeaders,
  idleSessions,
  slowStreams,
  slowReaders,
  rapidReset,
  headerBombs,
  pingFlood,
  settingsFlood,
  continuationFlood,
  emptyDataFlood,
  schemas,
];
