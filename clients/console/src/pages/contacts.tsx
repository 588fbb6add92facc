import { useInfiniteQuery } from "@connectrpc/connect-query";
import { Drawer, Stack, Text } from "@mantine/core";
import { useState } from "react";
import { type Contact, ContactSchema, ContactService } from "../../../../gen/moltwire/ops/v1/contact_service_pb.ts";
import { callOf } from "../parts/command.tsx";
import { type Column, List } from "../parts/list.tsx";
import { Empty, Facts, Head, Mono } from "../parts/show.tsx";
import { agoText, timeText } from "../parts/text.ts";

const { listContacts } = ContactService.method;

/** What people wrote to the operator by the form. */
export function Contacts() {
  const [opened, open] = useState<Contact>();
  const contacts = useInfiniteQuery(
    listContacts,
    { pageSize: 50, pageToken: "" },
    { pageParamKey: "pageToken", getNextPageParam: ({ nextPageToken }) => nextPageToken || undefined },
  );
  const columns: readonly Column<Contact>[] = [
    { name: "From", show: ({ name, email }) => <div className="fit">{name || email}</div> },
    { name: "Subject", show: ({ subject, message }) => <div className="fit">{subject || message}</div> },
    { name: "Age", right: true, show: ({ createTime }) => agoText(createTime) },
  ];
  return (
    <>
      <Head title="Contacts" call={callOf(listContacts, {})} onRefresh={() => void contacts.refetch()} />
      <List
        label="Contacts"
        schema={ContactSchema}
        rows={contacts.data?.pages.flatMap((page) => page.contacts) ?? []}
        columns={columns}
        keyOf={({ contactId }) => contactId}
        onOpen={open}
        isPending={contacts.isPending}
        error={contacts.error}
        more={contacts.hasNextPage ? () => void contacts.fetchNextPage() : undefined}
        isFetchingMore={contacts.isFetchingNextPage}
        empty={<Empty title="Nobody wrote yet">What people send by the form at /contact appears here.</Empty>}
      />
      <Drawer opened={opened !== undefined} onClose={() => open(undefined)} position="right" size="lg" title="Contact">
        {opened && (
          <Stack>
            <Facts
              facts={[
                ["From", opened.name],
                ["E-mail", opened.email],
                ["Subject", opened.subject],
                ["When", timeText(opened.createTime)],
                ["Address", <Mono key="address">{opened.clientAddress}</Mono>],
              ]}
            />
            <Text size="sm" style={{ whiteSpace: "pre-wrap" }}>
              {opened.message}
            </Text>
          </Stack>
        )}
      </Drawer>
    </>
  );
}
