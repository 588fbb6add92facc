import { Stack, Text, TextInput } from "@mantine/core";
import { type ReactNode, useState } from "react";
import { Role } from "../../../../gen/moltwire/api/v1/access_pb.ts";
import {
  AdminService,
  type RevealPayloadRequest,
  type RevealPayloadResponse,
} from "../../../../gen/moltwire/ops/v1/admin_service_pb.ts";
import { useOrg, useSession } from "../session.ts";
import { Act } from "./act.tsx";

const { revealPayload, listAuditEvents } = AdminService.method;
const shortestReason = 3;

/** What is shown of a thing: nothing more than its page has read, or it as a whole. */
export type Shown = RevealPayloadResponse["revealed"] | undefined;

/** The names of a thing, each kind in its own form. */
export type Subject =
  | Exclude<RevealPayloadRequest["subject"], { case: undefined | "entry" | "delivery" }>
  | {
      readonly case: "entry";
      readonly value: { readonly agentId: string; readonly namespace: string; readonly key: string };
    }
  | { readonly case: "delivery"; readonly value: { readonly webhookId: string; readonly eventId: string } };

/** Whether payloads are kept from who looks: the operator, at another organisation than the own. */
export function useIsKept(): boolean {
  const { session } = useSession();
  return session.role === Role.OPERATOR && useOrg() !== session.orgId;
}

type Props = {
  readonly subject: Subject;
  /** Shows the payload: of what its page has read (undefined), or of what was revealed. */
  readonly children: (shown: Shown) => ReactNode;
};

/** A payload; where it is kept from who looks, a button that shows it, for a reason that those whose it is can read. */
export function Payload({ subject, children }: Props) {
  const orgId = useOrg();
  const isKept = useIsKept();
  const [shown, show] = useState<Shown>();
  const [reason, setReason] = useState("");
  if (!isKept || shown) return children(shown);
  return (
    <Stack gap="xs" align="flex-start">
      <Text size="sm" c="dimmed">
        What is in it is the organisation’s, and kept from the operator.
      </Text>
      <Act
        label="Reveal"
        title="Reveal what is in it?"
        about="The reason is written into the organisation’s own audit log, where it stays: with who you are and what you were shown, and not what is in it."
        method={revealPayload}
        request={reason.trim().length < shortestReason ? undefined : { orgId, reason: reason.trim(), subject }}
        again={[listAuditEvents]}
        onDone={({ revealed }) => show(revealed)}
      >
        <TextInput
          label="Why"
          value={reason}
          onChange={({ currentTarget }) => setReason(currentTarget.value)}
          maxLength={500}
          data-autofocus
        />
      </Act>
    </Stack>
  );
}
