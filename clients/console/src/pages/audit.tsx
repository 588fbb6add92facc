import { useInfiniteQuery } from "@connectrpc/connect-query";
import { Drawer, Stack } from "@mantine/core";
import { useState } from "react";
import { Role } from "../../../../gen/moltwire/api/v1/access_pb.ts";
import { AdminService, type AuditEvent, AuditEventSchema } from "../../../../gen/moltwire/ops/v1/admin_service_pb.ts";
import { callOf } from "../parts/command.tsx";
import { type Column, List } from "../parts/list.tsx";
import { Empty, Facts, Head, Mono, Raw } from "../parts/show.tsx";
import { agoText, enumText, shortId, timeText } from "../parts/text.ts";
import { useOrg } from "../session.ts";

const { listAuditEvents } = AdminService.method;

/** Who did what, newest first. */
export function Audit() {
  const orgId = useOrg();
  const [opened, open] = useState<AuditEvent>();
  const acts = useInfiniteQuery(
    listAuditEvents,
    { orgId, pageSize: 50, pageToken: "" },
    { pageParamKey: "pageToken", getNextPageParam: ({ nextPageToken }) => nextPageToken || undefined },
  );
  const columns: readonly Column<AuditEvent>[] = [
    { name: "What", show: ({ method }) => method.split("/").at(-1) },
    { name: "By", show: ({ role, keyId }) => `${enumText(Role, role)} ${shortId(keyId)}` },
    {
      name: "To",
      wide: true,
      show: ({ resource }) => <div className="fit mono">{Object.values(resource).map(shortId).join(" ")}</div>,
    },
    { name: "Age", right: true, show: ({ time }) => agoText(time) },
  ];
  return (
    <>
      <Head title="Audit" call={callOf(listAuditEvents, { orgId })} onRefresh={() => void acts.refetch()} />
      <List
        label="Audit"
        schema={AuditEventSchema}
        rows={acts.data?.pages.flatMap((page) => page.auditEvents) ?? []}
        columns={columns}
        keyOf={({ auditId }) => auditId}
        onOpen={open}
        isPending={acts.isPending}
        error={acts.error}
        more={acts.hasNextPage ? () => void acts.fetchNextPage() : undefined}
        isFetchingMore={acts.isFetchingNextPage}
        empty={
          <Empty title="Nothing was administered yet">
            Each administrative act is kept here: who, what, to what, in which trace.
          </Empty>
        }
      />
      <Drawer opened={opened !== undefined} onClose={() => open(undefined)} position="right" size="lg" title="Act">
        {opened && (
          <Stack>
            <Facts
              facts={[
                ["What", opened.method],
                ["When", timeText(opened.time)],
                ["Role", enumText(Role, opened.role)],
                ["Key", <Mono key="key">{opened.keyId}</Mono>],
                ["Request", <Mono key="request">{opened.requestSha256}</Mono>],
              ]}
            />
            <Raw schema={AuditEventSchema} message={opened} />
          </Stack>
        )}
      </Drawer>
    </>
  );
}
