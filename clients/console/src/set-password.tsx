import { useMutation } from "@connectrpc/connect-query";
import { Button, Modal, PasswordInput, Stack, Text } from "@mantine/core";
import { type FormEvent, useState } from "react";
import { MaintenanceService } from "../../../gen/moltwire/ops/v1/maintenance_service_pb.ts";
import { SessionService } from "../../../gen/moltwire/ops/v1/session_service_pb.ts";
import { useReadAgain } from "./parts/again.ts";
import { Failure } from "./parts/failure.tsx";

const least = 12;

/** Asks for the operator's new password. */
export default function SetPassword({ onClose }: { onClose: () => void }) {
  const [password, setPassword] = useState("");
  const readAgain = useReadAgain();
  const set = useMutation(MaintenanceService.method.setAdminPassword, {
    onSuccess: async () => {
      setPassword("");
      onClose();
      await readAgain([SessionService.method.getSession]);
    },
  });
  const submit = (event: FormEvent) => {
    event.preventDefault();
    set.mutate({ password });
  };
  return (
    <Modal opened onClose={onClose} title="The operator’s password">
      <form onSubmit={submit}>
        <Stack>
          <Text size="sm" c="dimmed">
            All sessions that were made with the one before end.
          </Text>
          <PasswordInput
            label="New password"
            description={`At least ${least} characters`}
            autoComplete="new-password"
            value={password}
            onChange={(event) => setPassword(event.currentTarget.value)}
            minLength={least}
            maxLength={256}
            required
            data-autofocus
          />
          {set.error && <Failure error={set.error} />}
          <Button type="submit" loading={set.isPending}>
            Set
          </Button>
        </Stack>
      </form>
    </Modal>
  );
}
