import { type JsonValue, toJson } from "@bufbuild/protobuf";
import { ValueSchema } from "@bufbuild/protobuf/wkt";
import { Stack, Text, TextInput, Title } from "@mantine/core";
import { type ReactNode, useState } from "react";
import { Role } from "../../../../gen/moltwire/api/v1/access_pb.ts";
import {
  AdminService,
  type RevealedPayload,
  type RevealPayloadRequest,
} from "../../../../gen/moltwire/ops/v1/admin_service_pb.ts";
import { useOrg, useSession } from "../session.ts";
import { Act } from "./act.tsx";
import { Json } from "./show.tsx";

const { revealPayload, listAuditEvents } = AdminService.method;
const shortestReason = 3;

/** What was revealed of a thing; undefined: its page has read it all. */
type Shown = readonly RevealedPayload[] | undefined;

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
  /** Shows what its page has read; as a function, what was revealed too. */
  readonly children: ReactNode | ((shown: Shown) => ReactNode);
};

/** A payload; where it is kept from who looks, a button that shows it, for a reason that those whose it is can read. */
export function Payload({ subject, children }: Props) {
  const orgId = useOrg();
  const isKept = useIsKept();
  const [shown, show] = useState<Shown>();
  const [reason, setReason] = useState("");
  if (!isKept || shown) {
    if (typeof children === "function") return children(shown);
    return shown ? <Revealed payloads={shown} /> : children;
  }
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
        onDone={({ payloads }) => show(payloads)}
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

/** The payload of a name, in JSON. */
export const payloadNamed = (shown: readonly RevealedPayload[], name: string): JsonValue | undefined => {
  const found = shown.find(({ field }) => field === name);
  return found?.value && toJson(ValueSchema, found.value);
};

/** Each payload under its name. */
const Revealed = ({ payloads }: { payloads: readonly RevealedPayload[] }) => (
  <Stack gap="xs">
    {payloads.length === 0 && <Text size="sm">There is nothing in it.</Text>}
    {payloads.map(({ field, value }, index) => (
      <div key={`${field} ${index}`}>
        <Title order={3} size="h5" mb={4}>
          {field.charAt(0).toUpperCase() + field.slice(1).replaceAll("_", " ")}
        </Title>
        <Json value={value && toJson(ValueSchema, value)} />
      </div>
    ))}
  </Stack>
);
