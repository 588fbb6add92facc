import type { DescMessage, DescMethodUnary, MessageInitShape, MessageShape } from "@bufbuild/protobuf";
import { useMutation } from "@connectrpc/connect-query";
import { Button, Group, Modal, Stack, Text } from "@mantine/core";
import { useDisclosure } from "@mantine/hooks";
import type { FormEvent, ReactNode } from "react";
import { useReadAgain } from "./again.ts";
import { AsCommand, callOf } from "./command.tsx";
import { Failure } from "./failure.tsx";

type Props<I extends DescMessage, O extends DescMessage> = {
  /** What the button says, and the one that confirms. */
  readonly label: string;
  /** What is asked, as a question. */
  readonly title: string;
  /** What it brings. */
  readonly about?: string;
  readonly method: DescMethodUnary<I, O>;
  /** Undefined while the fields do not make one. */
  readonly request: MessageInitShape<I> | undefined;
  readonly cli?: string | undefined;
  /** What has to be read again afterwards. */
  readonly again: readonly DescMethodUnary[];
  readonly tone?: "main" | "plain" | "bad";
  readonly size?: "compact-sm" | "compact-xs" | "sm";
  readonly onDone?: (answer: MessageShape<O>) => void;
  /** Fields that make the request. */
  readonly children?: ReactNode;
};

/** A button that changes something: it asks first, and shows what it is about to do as a command. */
export function Act<I extends DescMessage, O extends DescMessage>(props: Props<I, O>) {
  const { label, title, about, method, request, cli, again, tone = "plain", size = "sm", onDone, children } = props;
  const [asking, ask] = useDisclosure(false);
  const readAgain = useReadAgain();
  const change = useMutation(method, {
    onSuccess: async (answer) => {
      ask.close();
      onDone?.(answer);
      await readAgain(again);
    },
  });
  const open = () => {
    change.reset();
    ask.open();
  };
  const submit = (event: FormEvent) => {
    event.preventDefault();
    // Of a form within a dialog of another one, React tells the outer one too.
    event.stopPropagation();
    if (request) change.mutate(request);
  };
  const look = tone === "bad" ? { color: "red.9" } : tone === "plain" ? { variant: "default" } : {};
  return (
    <>
      <Button {...look} size={size} onClick={open}>
        {label}…
      </Button>
      <Modal opened={asking} onClose={ask.close} title={title}>
        <form onSubmit={submit}>
          <Stack>
            {about && <Text size="sm">{about}</Text>}
            {children}
            {change.error && <Failure error={change.error} />}
            <Group justify="flex-end">
              {request && <AsCommand cli={cli} call={callOf(method, request)} />}
              <Button
                type="submit"
                {...(tone === "bad" && { color: "red.9" })}
                disabled={!request}
                loading={change.isPending}
              >
                {label}
              </Button>
            </Group>
          </Stack>
        </form>
      </Modal>
    </>
  );
}
