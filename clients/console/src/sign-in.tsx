import { useMutation } from "@connectrpc/connect-query";
import { Anchor, Button, Center, Paper, PasswordInput, Stack, Text, Title } from "@mantine/core";
import { useQueryClient } from "@tanstack/react-query";
import { type FormEvent, useState } from "react";
import { SessionService } from "../../../gen/moltwire/ops/v1/session_service_pb.ts";
import { useReadAgain } from "./parts/again.ts";
import { Command } from "./parts/command.tsx";
import { Failure } from "./parts/failure.tsx";

/** The way in: the operator's password, or a key, which is sent once and kept nowhere in the browser. */
export function SignIn({ passwordSet }: { passwordSet: boolean }) {
  const [byPassword, setByPassword] = useState(passwordSet);
  const [secret, setSecret] = useState("");
  const queries = useQueryClient();
  const readAgain = useReadAgain();
  const signIn = useMutation(SessionService.method.signIn, {
    onSuccess: async () => {
      setSecret("");
      // What somebody else saw before is not for who signs in now.
      queries.removeQueries({ predicate: (query) => !query.isActive() });
      await readAgain([SessionService.method.getSession]);
    },
  });
  const submit = (event: FormEvent) => {
    event.preventDefault();
    const credential = byPassword
      ? ({ case: "password", value: secret } as const)
      : ({ case: "apiKey", value: secret.trim() } as const);
    signIn.mutate({ credential });
  };
  return (
    <Center component="main" mih="100vh" p="md">
      <Paper withBorder p="xl" w="100%" maw={440}>
        <form onSubmit={submit}>
          <Stack>
            <Title order={1} size="h2">
              Moltwire
            </Title>
            <PasswordInput
              key={String(byPassword)}
              label={byPassword ? "Operator’s password" : "Key"}
              description={byPassword ? undefined : "mw_… of the operator or of an organisation’s administrator"}
              autoComplete={byPassword ? "current-password" : "off"}
              value={secret}
              onChange={(event) => setSecret(event.currentTarget.value)}
              autoFocus
              required
              maxLength={256}
            />
            {signIn.error && <Failure error={signIn.error} />}
            <Button type="submit" loading={signIn.isPending}>
              Sign in
            </Button>
            {passwordSet ? (
              <Anchor
                component="button"
                type="button"
                size="sm"
                onClick={() => {
                  setByPassword(!byPassword);
                  setSecret("");
                  signIn.reset();
                }}
              >
                {byPassword ? "Sign in with a key instead" : "Sign in with the password instead"}
              </Anchor>
            ) : (
              <>
                <Text size="sm" c="dimmed">
                  No password is set yet. The operator’s key was printed at the first start; with it one can be set here
                  afterwards, or in a terminal:
                </Text>
                <Command text="npx moltwire admin set-password" />
              </>
            )}
          </Stack>
        </form>
      </Paper>
    </Center>
  );
}
