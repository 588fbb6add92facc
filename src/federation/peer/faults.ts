/** What keeps an operator from changing a peer. */
import { PeerState } from "../../../gen/moltwire/federation/v1/peer_pb.ts";
import type { App } from "../../app.ts";
import type { Queryable } from "../../db/db.ts";
import { badField, Fault } from "../../errors.ts";
import { isOwnKey } from "./identity.ts";
import { keyFault, publicKeyBytes } from "./key.ts";
import type { PeerRow } from "./store.ts";

/** FAILED_PRECONDITION when the peer is removed. */
export function checkActive({ state }: PeerRow): void {
  if (state !== PeerState.ACTIVE)
    throw new Fault("FAILED_PRECONDITION", "the peer is removed: add it again", { state: "REMOVED" });
}

export const keyTaken = (field: string): Fault =>
  new Fault("ALREADY_EXISTS", `${field}: a peer has this key`, { resource: "peer_key", field });

/** INVALID_REQUEST unless the bytes can be the public key of another server. */
export async function checkKey(
  db: Queryable,
  app: Pick<App, "homeOrgId">,
  publicKey: Uint8Array,
  field: string,
): Promise<void> {
  if (publicKey.length !== publicKeyBytes) throw badField(field, `must be ${publicKeyBytes} bytes`);
  const fault = keyFault(publicKey);
  if (fault) throw badField(field, fault);
  if (await isOwnKey(db, app, publicKey)) throw badField(field, "is this server's own");
}
