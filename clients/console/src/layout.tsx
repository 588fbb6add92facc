import { useQuery } from "@connectrpc/connect-query";
import { AppShell, Burger, Button, Group, Kbd, NativeSelect, NavLink, ScrollArea, Text } from "@mantine/core";
import { useDisclosure } from "@mantine/hooks";
import { Link, Outlet, useLocation, useNavigate } from "@tanstack/react-router";
import { Fragment, lazy, Suspense, useEffect, useState } from "react";
import { Role } from "../../../gen/moltwire/api/v1/access_pb.ts";
import { OrganizationService } from "../../../gen/moltwire/federation/v1/organization_service_pb.ts";
import { type Live, openLive } from "./live/store.ts";
import { LiveContext, useLive } from "./live/use-live.ts";
import { Palette } from "./palette.tsx";
import { useWord } from "./parts/address.ts";
import { useEscape } from "./parts/escape.ts";
import { State } from "./parts/show.tsx";
import { pages } from "./router.tsx";
import { useOrg, useSession } from "./session.ts";

const UserModal = lazy(() => import("./user-modal.tsx"));

/** What stands around every page. */
export function Layout() {
  const orgId = useOrg();
  const [live, setLive] = useState<Live>();
  const [opened, { toggle, close }] = useDisclosure(false);
  useEscape();
  const { pathname } = useLocation();
  const { session } = useSession();
  const shown = pages.filter((page) => !("operator" in page) || session.role === Role.OPERATOR);

  useEffect(() => {
    const opened = openLive(orgId);
    setLive(opened);
    return () => opened.close();
  }, [orgId]);

  return (
    <LiveContext value={live}>
      <AppShell
        header={{ height: 52 }}
        navbar={{ width: 200, breakpoint: "sm", collapsed: { mobile: !opened } }}
        padding="md"
      >
        <AppShell.Header>
          <Group h="100%" px="sm" justify="space-between" wrap="nowrap" gap="xs">
            <Group gap="xs" wrap="nowrap">
              <Burger opened={opened} onClick={toggle} hiddenFrom="sm" size="sm" aria-label="Pages" />
              <Text fw={700} visibleFrom="xs">
                Moltwire
              </Text>
              <Badge />
            </Group>
            <Group gap="xs" wrap="nowrap">
              <OrgChoice />
              <Palette />
              <User />
            </Group>
          </Group>
        </AppShell.Header>
        <AppShell.Navbar p="xs">
          <AppShell.Section grow component={ScrollArea}>
            {shown.map(({ path, title, group }, index) => {
              const isHere = path === "/" ? pathname === "/" : pathname === path || pathname.startsWith(`${path}/`);
              return (
                <Fragment key={path}>
                  {group !== shown[index - 1]?.group && (
                    <Text size="xs" c="dimmed" px="xs" pt={index === 0 ? 0 : "sm"} pb={2}>
                      {group}
                    </Text>
                  )}
                  <NavLink
                    component={Link}
                    to={path}
                    label={title}
                    py={5}
                    onClick={close}
                    active={isHere}
                    {...(isHere && { "aria-current": "page" as const })}
                  />
                </Fragment>
              );
            })}
          </AppShell.Section>
          <Text size="xs" c="dimmed" p="xs" visibleFrom="sm">
            <Kbd>j</Kbd> <Kbd>k</Kbd> rows · <Kbd>/</Kbd> filter · <Kbd>Ctrl K</Kbd> anything
          </Text>
        </AppShell.Navbar>
        <AppShell.Main>
          <Outlet />
        </AppShell.Main>
      </AppShell>
    </LiveContext>
  );
}

/** Whether what is shown is live. */
function Badge() {
  const { state } = useLive();
  const tone = state === "live" ? "good" : state === "connecting" ? "off" : "wait";
  return (
    <Text size="xs" role="status" data-live={state}>
      <State tone={tone}>{state}</State>
    </Text>
  );
}

/** The operator chooses the organisation that is looked at; it stands in the address. */
function OrgChoice() {
  const { session } = useSession();
  const isOperator = session.role === Role.OPERATOR;
  const [chosen] = useWord("org");
  const navigate = useNavigate();
  const { data } = useQuery(OrganizationService.method.listOrganizations, { pageSize: 250 }, { enabled: isOperator });
  if (!isOperator)
    return (
      <Text size="sm" visibleFrom="sm">
        {session.orgName}
      </Text>
    );
  const choices = (data?.organizations ?? []).map(({ orgId, name, displayName }) => ({
    value: orgId,
    label: displayName || name,
  }));
  return (
    <NativeSelect
      aria-label="Organisation"
      size="xs"
      w={{ base: 120, sm: 180 }}
      data={choices.length > 0 ? choices : [{ value: session.orgId, label: session.orgName }]}
      value={chosen || session.orgId}
      onChange={({ currentTarget: { value } }) =>
        // What was filtered by and opened is of the organisation before.
        void navigate({ to: ".", search: { org: value === session.orgId ? undefined : value } as never })
      }
    />
  );
}

/** Who is signed in, and what they can do about it. */
function User() {
  const { session } = useSession();
  const [opened, { open, close }] = useDisclosure(false);
  return (
    <>
      <Button variant="default" size="compact-sm" onClick={open}>
        {session.role === Role.OPERATOR ? "operator" : "admin"}
      </Button>
      <Suspense>{opened && <UserModal onClose={close} />}</Suspense>
    </>
  );
}
