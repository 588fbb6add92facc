import { create, type DescMessage, type DescMethodUnary, type MessageInitShape, toJson } from "@bufbuild/protobuf";
import { Button, CopyButton, Group } from "@mantine/core";
import { useDisclosure } from "@mantine/hooks";
import { lazy, Suspense } from "react";

/** A command to copy. */
export const Command = ({ text }: { text: string }) => (
  <Group gap="xs" wrap="nowrap" align="stretch">
    <pre className="command" style={{ flex: 1 }}>
      {text}
    </pre>
    <CopyButton value={text}>
      {({ copied, copy }) => (
        <Button variant="default" size="compact-sm" h="auto" onClick={copy}>
          {copied ? "Copied" : "Copy"}
        </Button>
      )}
    </CopyButton>
  </Group>
);

/** A call of the public protocol. */
export type Call = { readonly method: DescMethodUnary; readonly request: object };

/** A call with its request, checked against each other. */
export const callOf = <I extends DescMessage, O extends DescMessage>(
  method: DescMethodUnary<I, O>,
  request: MessageInitShape<I>,
): Call => ({ method, request: create(method.input, request) });

const inQuotes = (text: string): string => `'${text.replaceAll("'", `'\\''`)}'`;

/** The same call as a line of `curl`. */
export function curlOf({ method, request }: Call): string {
  const body = JSON.stringify(toJson(method.input, request as never));
  const url = `${window.location.origin}/${method.parent.typeName}/${method.name}`;
  return `curl -sS ${url} \\\n  -H "authorization: Bearer $MOLTWIRE_API_KEY" -H 'content-type: application/json' \\\n  -d ${inQuotes(body)}`;
}

const CommandDrawer = lazy(() => import("./command-drawer.tsx"));

/** Shows what the console does here as commands: what it can do, anybody can. */
export function AsCommand({ cli, call }: { cli?: string | undefined; call: Call }) {
  const [opened, { open, close }] = useDisclosure(false);
  return (
    <>
      <Button variant="default" size="compact-sm" onClick={open}>
        As command
      </Button>
      <Suspense>{opened && <CommandDrawer cli={cli} call={call} onClose={close} />}</Suspense>
    </>
  );
}
