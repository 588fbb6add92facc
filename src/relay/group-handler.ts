import { durationMs } from "@bufbuild/protobuf/wkt";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import type {
  DeleteConsumerGroupRequest,
  PullMessagesRequest,
  RelayService,
} from "../../gen/moltwire/relay/v1/relay_service_pb.ts";
import type { App } from "../app.ts";
import { asked, type Keeping, keepApart, keepingOf, readKeepingOf } from "../bus/policy/keeping.ts";
import { actingAgent } from "../bus/submit.ts";
import type { Tx } from "../db/db.ts";
import { badField, Fault, notFound, Refused } from "../errors.ts";
import { bellMs } from "../queue/wait.ts";
import { type Caller, callerOf, traceOf } from "../rpc/caller.ts";
import { type Command, command, runCommand } from "../rpc/command.ts";
import { endWithKey } from "../rpc/feed.ts";
import { readBoundedPage, readPage } from "../rpc/page.ts";
import { query } from "../rpc/query.ts";
import { orgOf } from "../rpc/scope.ts";
import { channelToRead } from "./access.ts";
import { full } from "./channel-handler.ts";
import { type ChannelRow, lockChannel, logOf } from "./channel-store.ts";
import { removeDroppedGroup } from "./drop.ts";
import {
  countGroups,
  type DeadHead,
  type DeadPosition,
  dropGroup,
  endFlights,
  findGroup,
  type GroupRef,
  type GroupRow,
  groupTopic,
  insertGroup,
  listDead,
  listGroups,
  lockDroppedGroup,
  lockGroup,
  nextDue,
  putFlight,
  readDead,
  takeDead,
  toGroup,
} from "./group-store.ts";
import { defaults, limits } from "./limits.ts";
import { findHead } from "./log-store.ts";
import { logTopic } from "./message.ts";
import { deliveriesOf, giveBack, groupFull, type Pulled, type Pulling, pull } from "./pull.ts";
import { checkAfter } from "./subscribe.ts";

type Built =
  | "createConsumerGroup"
  | "listConsumerGroups"
  | "deleteConsumerGroup"
  | "pullMessages"
  | "ackMessages"
  | "nackMessages"
  | "listDeadMessages"
  | "redriveMessages";

export const groupHandler = (app: App): Pick<ServiceImpl<typeof RelayService>, Built> => ({
  createConsumerGroup: command(app, async (req, given) => {
    const { tx, now } = given;
    if (!req.name.isWellFormed()) throw badField("name", "half a surrogate pair");
    const { channel, agentId } = await readable(app, keepingOf(app, given), given, req);
    const log = logOf(channel);
    // Held, so that two that are made at once are both counted, and none is made in a channel that is being deleted.
    if ((await lockChannel(tx, channel.org_id, channel.name))?.log_id !== channel.log_id)
      throw notFound("channel", req.channel);
    if ((await countGroups(tx, log)) >= limits.groups) throw full("consumer groups", limits.groups);
    const head = await findHead(tx, log);
    if (!head) throw notFound("channel", req.channel);
    const row: GroupRow = {
      name: req.name,
      position: req.afterSequence === undefined ? head.head : checkAfter(req.afterSequence, head),
      ack_timeout_ms: req.ackTimeout ? durationMs(req.ackTimeout) : defaults.ackTimeoutMs,
      max_deliveries: req.maxDeliveries || defaults.maxDeliveries,
      owner_agent_id: agentId,
      create_ms: now,
      ...{ outstanding: 0, dead_lost: 0, lost: 0 },
    };
    if ((await insertGroup(tx, log, row)) === 0) {
      if (await lockDroppedGroup(tx, { ...log, group: req.name })) throw stillDeleted();
      throw new Fault("ALREADY_EXISTS", "the channel has a group of this name", {
        resource: "consumer_group",
        id: req.name,
      });
    }
    return { group: toGroup(channel.name, row) };
  }),

  listConsumerGroups: query(app, async (req, given) => {
    const { channel } = await readable(app, readKeepingOf(app, given), given, req);
    const page = await readPage(
      app.cursors,
      ["ListConsumerGroups", channel.org_id, channel.log_id],
      req,
      (after, limit) => listGroups(given.db, logOf(channel), (after?.[0] as string) ?? "", limit),
      ({ name }) => [name],
    );
    return { groups: page.rows.map((row) => toGroup(channel.name, row)), nextPageToken: page.nextPageToken };
  }),

  deleteConsumerGroup: async (request, context) => {
    let dropped: GroupRef | undefined;
    const { reply } = await runCommand(app, request, context, async (req: DeleteConsumerGroupRequest, given) => {
      const { tx } = given;
      const { channel, agentId } = await readable(app, keepingOf(app, given), given, req);
      const { ref, group } = await held(tx, channel, req.group);
      const mayDelete = agentId === "" || agentId === group.owner_agent_id || agentId === channel.owner_agent_id;
      if (!mayDelete) throw notFound("consumer_group", req.group);
      await dropGroup(tx, ref);
      tx.ring(groupTopic(ref));
      dropped = ref;
      return {};
    });
    // What this leaves, because the server stops, is removed by the sweep.
    if (dropped) await removeDroppedGroup(app, dropped);
    return reply;
  },

  pullMessages: (req, context) => pullOrWait(app, req, context),

  ackMessages: command(app, async (req, given) => {
    const { tx } = given;
    const { channel } = await readable(app, keepingOf(app, given), given, req);
    const { ref } = await held(tx, channel, req.group);
    const { held: rows, lost } = await deliveriesOf(tx, ref, req.ackIds);
    const sequences = rows.map(({ sequence }) => sequence);
    if (sequences.length > 0) await endFlights(tx, ref, sequences);
    return { acknowledged: rows.length, lostAckIds: [...lost] };
  }),

  nackMessages: command(app, async (req, given) => {
    const { tx, now } = given;
    const { channel } = await readable(app, keepingOf(app, given), given, req);
    const pulling = await held(tx, channel, req.group);
    const { held: rows, lost } = await deliveriesOf(tx, pulling.ref, req.ackIds);
    const dueMs = now + (req.delay ? durationMs(req.delay) : 0);
    const { returned, dead, gone } = await giveBack(tx, app, pulling, rows, { dueMs, cause: req.cause, now });
    return { returned, dead, lost: gone, lostAckIds: [...lost] };
  }),

  listDeadMessages: query(app, async (req, given) => {
    const { channel } = await readable(app, readKeepingOf(app, given), given, req);
    const log = logOf(channel);
    const page = await readBoundedPage(
      app.cursors,
      ["ListDeadMessages", channel.org_id, channel.log_id, req.group],
      req,
      (after, limit) => listDead(given.db, log, req.group, after as DeadPosition | undefined, limit),
      positionOf,
      ({ bytes }) => bytes,
    );
    const [after, last] = [page.after as DeadPosition | undefined, page.rows.at(-1)];
    const deadMessages = last ? await readDead(given.db, app, log, req.group, after, positionOf(last)) : [];
    return { deadMessages, nextPageToken: page.nextPageToken };
  }),

  redriveMessages: command(app, async (req, given) => {
    const { tx, now } = given;
    const { channel } = await readable(app, keepingOf(app, given), given, req);
    const { ref, group } = await held(tx, channel, req.group);
    const most = Math.min(limits.redrive, limits.outstanding - group.outstanding);
    if (most <= 0) throw groupFull();
    const taken = await takeDead(tx, ref, req.sequences, most);
    for (const sequence of taken) {
      const flight = { sequence, deliveries: 0, token: "", agent_id: "", due_ms: now };
      await putFlight(tx, ref, flight, false);
    }
    tx.ring(groupTopic(ref));
    return { redriven: taken.length, more: taken.length === most };
  }),
});

const positionOf = ({ group_name, sequence }: DeadHead): DeadPosition => [group_name, sequence];

const stillDeleted = (): Fault =>
  new Fault("FAILED_PRECONDITION", "a group of this name is still being deleted: try again in a while", {
    state: "DELETING",
  });

type Naming = { readonly channel: string; readonly agentId: string };
type By = { readonly caller: Caller; readonly orgId: string; readonly now: number };

/** The channel that a request names, if its agent may read it, and the agent. */
async function readable(
  app: App,
  keeping: Keeping,
  { caller, orgId, now }: By,
  req: Naming,
): Promise<{ readonly channel: ChannelRow; readonly agentId: string }> {
  const agentId = await actingAgent(keeping.db, caller, orgId, req.agentId);
  return { channel: await channelToRead(keeping, app, { orgId, agentId, now }, req.channel), agentId };
}

/** A group of the channel, held. */
async function held(tx: Tx, channel: ChannelRow, name: string): Promise<Pulling> {
  const log = logOf(channel);
  const ref = { ...log, group: name };
  const group = await lockGroup(tx, ref);
  if (!group) throw notFound("consumer_group", name);
  return { log, ref, group };
}

/**
 * Ends a pull that found nothing and will be made again. What it passed over stays so, or the next one would come to it again; its idempotency key is free for
 * the one that finds something.
 */
class NothingYet extends Refused {}

/**
 * PullMessages: pulls, and while there is nothing and time is left, waits and pulls again. Between two pulls it holds nothing but a bell. The wait ends with
 * SHUTTING_DOWN when the server stops, and with the key's reason when its key ends.
 */
async function pullOrWait(app: App, req: PullMessagesRequest, context: HandlerContext) {
  const untilMs = app.clock.now() + (req.wait ? durationMs(req.wait) : 0);
  const waits = untilMs > app.clock.now();
  const attempt = (final: boolean) =>
    runCommand(app, req, context, async (request, given: Command): Promise<Pulled> => {
      const { tx, now } = given;
      const keeping = keepingOf(app, given);
      const { channel, agentId } = await readable(app, waits ? asked(keeping) : keeping, given, request);
      const pulling = await held(tx, channel, request.group);
      const pulled = await pull(tx, app, pulling, agentId, request.maxMessages || 1, now);
      if (pulled.messages.length === 0 && pulled.missed === 0n && !final)
        throw new NothingYet("NOT_FOUND", "there is no message yet");
      tx.afterCommit(() => app.relayCounts.delivered("group", pulled.messages.length));
      return pulled;
    });
  if (!waits) return (await attempt(true)).reply;

  const caller = callerOf(context);
  const orgId = await orgOf(app.db.query, caller, req.orgId);
  const keeping = asked(keepApart(app, app.db.query, { orgId, traceId: traceOf(context).traceId }));
  const { channel } = await readable(app, keeping, { caller, orgId, now: app.clock.now() }, req);
  const ref = { ...logOf(channel), group: req.group };
  if (!(await findGroup(app.db.query, ref))) throw notFound("consumer_group", req.group);
  const over = new AbortController();
  const signal = AbortSignal.any([context.signal, app.stopping, over.signal]);
  try {
    const bell = app.db.listen([logTopic(ref.logId), groupTopic(ref)], signal);
    endWithKey(app, caller, over, signal);
    for (;;) {
      const final = app.clock.now() >= untilMs;
      try {
        return (await attempt(final)).reply;
      } catch (error) {
        if (!(error instanceof NothingYet)) throw error;
      }
      const dueMs = (await nextDue(app.db.query, ref)) ?? untilMs;
      await bell.wait(bellMs(app, Math.min(dueMs, untilMs) - app.clock.now()), signal);
    }
  } catch (error) {
    throw over.signal.aborted ? over.signal.reason : error;
  } finally {
    over.abort();
  }
}
