/** WatchScenario: the events of a scenario as they come, until its run has ended. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { ScenarioState } from "../../gen/moltwire/lab/v1/scenario_pb.ts";
import type {
  WatchScenarioRequest,
  WatchScenarioResponseSchema,
} from "../../gen/moltwire/lab/v1/scenario_service_pb.ts";
import { notFound } from "../errors.ts";
import type { Reader } from "../rpc/feed.ts";
import type { Query } from "../rpc/query.ts";
import { readEvents, scenarioTopic, toEvent } from "./event-store.ts";
import { findScenario, type ShownRow, toScenario } from "./store.ts";

type Message = MessageInitShape<typeof WatchScenarioResponseSchema>;

/** Follows one scenario. */
export async function scenarioReader(
  req: WatchScenarioRequest,
  { db, orgId }: Query,
): Promise<Reader<Message, number>> {
  const { scenarioId } = req;
  const find = async (): Promise<ShownRow> => {
    const row = await findScenario(db, orgId, scenarioId);
    if (!row) throw notFound("scenario", scenarioId);
    return row;
  };
  const position = Number(req.afterSequence);
  const scenario = await find();
  return {
    topics: [scenarioTopic(scenarioId)],
    position,
    first: [{ sequence: req.afterSequence, event: { case: "scenario", value: toScenario(scenario) } }],
    cursor: String,
    checkpoint: (at, nowMs) => ({ sequence: BigInt(at), event: { case: "checkpoint", value: timestampFromMs(nowMs) } }),
    async read(after, limit) {
      // Before the events: all that there will be of a run that has ended are there by then.
      const { state } = await find();
      const rows = await readEvents(db, orgId, scenarioId, after, limit);
      const messages = rows.map((row): Message => {
        const event = toEvent(row);
        return { sequence: BigInt(row.sequence), event: { case: "scenarioEvent", value: event } };
      });
      const more = rows.length === limit;
      const hasEnded = state !== ScenarioState.RUNNING && state !== ScenarioState.CREATED;
      return { messages, position: rows.at(-1)?.sequence ?? after, more, over: hasEnded && !more };
    },
  };
}
