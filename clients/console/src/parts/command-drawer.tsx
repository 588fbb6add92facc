import { Drawer, Stack, Text } from "@mantine/core";
import { type Call, Command, curlOf } from "./command.tsx";

type Props = { readonly cli?: string | undefined; readonly call: Call; readonly onClose: () => void };

/** A file of its own, and its only export the default one, so that it is loaded when it is first opened. */
export default function CommandDrawer({ cli, call, onClose }: Props) {
  return (
    <Drawer opened onClose={onClose} position="right" title="The same as a command" size="lg">
      <Stack>
        {cli && (
          <>
            <Text size="sm">In a terminal, with the key in MOLTWIRE_API_KEY:</Text>
            <Command text={cli} />
          </>
        )}
        <Text size="sm">From any program:</Text>
        <Command text={curlOf(call)} />
      </Stack>
    </Drawer>
  );
}
