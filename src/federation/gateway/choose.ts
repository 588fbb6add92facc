/** Which grant a request is made under, when it names none. Pure. */
import type { ContractRow, ContractSubject } from "../../bus/contract-store.ts";
import type { GrantRow } from "../grant/store.ts";

type Subject = Pick<GrantRow, "subject_kind" | "subject">;
type Choosable = Subject & Pick<GrantRow, "grant_id" | "expire_ms">;

/** The closest first. */
const kinds: readonly GrantRow["subject_kind"][] = ["listingId", "contractId", "capability", "namespace"];

/** What a grant has to be on in order to cover a contract, by its kind. An empty subject is none. */
export const subjectsOf = (
  contract: Pick<ContractRow, "contract_id" | "capability" | "namespace">,
): Readonly<Record<ContractSubject["kind"], string>> => ({
  contractId: contract.contract_id,
  capability: contract.capability,
  namespace: contract.namespace,
});

/** Whether a grant of the contract's organisation is on this contract; where a listing is invoked, on that: one on a listing opens nothing else. */
export function covers(
  { subject_kind, subject }: Subject,
  contract: Parameters<typeof subjectsOf>[0],
  listingId?: string,
): boolean {
  if (subject === "") return false;
  if (listingId !== undefined || subject_kind === "listingId")
    return subject_kind === "listingId" && subject === listingId;
  return subjectsOf(contract)[subject_kind] === subject;
}

/**
 * Grants that cover a contract, the best first: one on the contract before one on its capability before one on its namespace; of equals one that never expires
 * before one that does, then that which expires last, then the oldest, as ids sort by time. Whatever the order in which they come, it is the same.
 */
export const inOrder = <Grant extends Choosable>(grants: readonly Grant[]): Grant[] =>
  grants.toSorted(
    (a, b) =>
      kinds.indexOf(a.subject_kind) - kinds.indexOf(b.subject_kind) ||
      later(b.expire_ms) - later(a.expire_ms) ||
      (a.grant_id < b.grant_id ? -1 : 1),
  );

const later = (expireMs: number | null): number => expireMs ?? Number.MAX_SAFE_INTEGER;
