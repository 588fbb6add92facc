import { useSearch } from "@tanstack/react-router";
import { createContext, use } from "react";
import { Role } from "../../../gen/moltwire/api/v1/access_pb.ts";
import type { Session } from "../../../gen/moltwire/ops/v1/session_service_pb.ts";

/** Who is signed in. */
export type SignedIn = { readonly session: Session; readonly passwordSet: boolean };

export const SessionContext = createContext<SignedIn | undefined>(undefined);

export function useSession(): SignedIn {
  const signedIn = use(SessionContext);
  if (!signedIn) throw new Error("nobody is signed in");
  return signedIn;
}

/** The organisation that is looked at: the one of the address, which only the operator can change, or one's own. */
export function useOrg(): string {
  const { session } = useSession();
  const { org } = useSearch({ strict: false }) as { org?: string };
  return (session.role === Role.OPERATOR && org) || session.orgId;
}
