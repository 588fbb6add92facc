/** What keeps an operator from changing a peer. */
import { PeerState } from "../../../gen/moltwire/federation/v1/peer_pb.ts";
import { Fault } from "../../errors.ts";
import type { PeerRow } from "./store.ts";

/** FAILED_PRECONDITION when the peer is removed. */
export function checkActive({ state }: PeerRow): void {
  if (state !== PeerState.ACTIVE)
    throw new Fault("FAILED_PRECONDITION", "the peer is removed: add it again", { state: "REMOVED" });
}

export const keyTaken = (field: string): Fault =>
  new Fault("ALREADY_EXISTS", `${field}: a peer has this key`, { resource: "peer_key", field });
