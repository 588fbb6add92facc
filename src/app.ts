import type { Logger } from "pino";
import type { Adapters } from "./bus/adapter.ts";
import type { Policies } from "./bus/policy/policies.ts";
import type { ReadDecisions } from "./bus/policy/read-decisions.ts";
import type { SchemaCache } from "./bus/schema/schema.ts";
import type { StepWatcher } from "./bus/step-watch.ts";
import type { Clock } from "./clock.ts";
import type { Config } from "./config.ts";
import type { Db } from "./db/db.ts";
import type { Activity } from "./directory/activity.ts";
import type { Egress } from "./egress/egress.ts";
import type { KeyUse } from "./federation/key-use.ts";
import type { Ids } from "./ids.ts";
import type { Metrics } from "./ops/metrics.ts";
import type { Retention } from "./ops/retention.ts";
import type { RelayCounts } from "./relay/metrics.ts";
import type { Cursors } from "./rpc/cursor.ts";
import type { Limiters } from "./rpc/limits.ts";
import type { Telemetry } from "./telemetry/span.ts";
import type { Keyring } from "./vault/keyring.ts";
import type { Vault } from "./vault/sealed.ts";

/** Everything a handler may reach beside its request. Nothing else reads the clock, makes an id or opens a socket. */
export type App = {
  readonly config: Config;
  readonly db: Db;
  readonly clock: Clock;
  readonly ids: Ids;
  readonly egress: Egress;
  /** The way out of webhooks: with connections of its own, and plain http only to what the operator lists. */
  readonly webhookEgress: Egress;
  readonly vault: Vault;
  /** The keys of the vault, if it encrypts; for its own upkeep. */
  readonly keyring: Keyring | undefined;
  readonly cursors: Cursors;
  readonly keyUse: KeyUse;
  /** Counts requests: the gate each call, and a conversation each of its frames. */
  readonly limiters: Limiters;
  readonly activity: Activity;
  readonly adapters: Adapters;
  readonly schemas: SchemaCache;
  readonly policies: Policies;
  readonly readDecisions: ReadDecisions;
  readonly metrics: Metrics;
  readonly relayCounts: RelayCounts;
  readonly retention: Retention;
  /** Takes spans, if the operator wants them. */
  readonly telemetry: Telemetry | undefined;
  /** Told of the steps of each transaction after its commit. */
  readonly stepsCommitted: StepWatcher;
  readonly log: Logger;
  /** This process among the replicas: `srv_…`. */
  readonly serverId: string;
  /** The organisation that the operator acts in when it names none. */
  readonly homeOrgId: string;
  /** Aborts when the server begins to stop: streams end, nothing new is begun. */
  readonly stopping: AbortSignal;
  /** Aborts when the time to finish is over: calls that still wait for a task are answered, tasks under way are let go. */
  readonly ending: AbortSignal;
};
