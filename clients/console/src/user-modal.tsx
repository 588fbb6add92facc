import { useMutation } from "@connectrpc/connect-query";
import { Button, Modal, SegmentedControl, Stack, Text, useMantineColorScheme } from "@mantine/core";
import { useState } from "react";
import { Role } from "../../../gen/moltwire/api/v1/access_pb.ts";
import { SessionService } from "../../../gen/moltwire/ops/v1/session_service_pb.ts";
import { Failure } from "./parts/failure.tsx";
import { Facts, Mono } from "./parts/show.tsx";
import { timeText } from "./parts/text.ts";
import { useSession } from "./session.ts";
import SetPassword from "./set-password.tsx";

/** Who is signed in; light or dark; the password; the way out. A file of its own, so that it is loaded when it is first opened. */
export default function UserModal({ onClose }: { onClose: () => void }) {
  const { session, passwordSet } = useSession();
  const { colorScheme, setColorScheme } = useMantineColorScheme();
  const [asking, setAsking] = useState(false);
  const signOut = useMutation(SessionService.method.signOut, {
    // A new page: nothing of what was seen stays.
    onSuccess: () => window.location.reload(),
  });
  const isOperator = session.role === Role.OPERATOR;
  if (asking) return <SetPassword onClose={onClose} />;
  return (
    <Modal opened onClose={onClose} title={isOperator ? "Operator" : "Administrator"}>
      <Stack>
        <Facts
          facts={[
            ["Organisation", session.orgName],
            [
              "Signed in with",
              session.keyId === "key_password" ? "the password" : <Mono key="key">{session.keyId}</Mono>,
            ],
            ["Until", timeText(session.expireTime)],
          ]}
        />
        <SegmentedControl
          aria-label="Colours"
          data={[
            { value: "light", label: "Light" },
            { value: "dark", label: "Dark" },
            { value: "auto", label: "As the system" },
          ]}
          value={colorScheme}
          onChange={(scheme) => setColorScheme(scheme as typeof colorScheme)}
        />
        {isOperator && !passwordSet && (
          <Text size="sm" c="dimmed">
            No password is set: with one you need not keep the key at hand.
          </Text>
        )}
        {isOperator && (
          <Button variant="default" onClick={() => setAsking(true)}>
            {passwordSet ? "Change the password" : "Set a password"}
          </Button>
        )}
        {signOut.error && <Failure error={signOut.error} />}
        <Button onClick={() => signOut.mutate({})} loading={signOut.isPending}>
          Sign out
        </Button>
      </Stack>
    </Modal>
  );
}
