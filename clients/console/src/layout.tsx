import { useMutation, useQuery } from "@connectrpc/connect-query";
import {
  AppShell,
  Burger,
  Button,
  Group,
  Kbd,
  Menu,
  NavLink,
  ScrollArea,
  Select,
  Text,
  useMantineColorScheme,
  VisuallyHidden,
} from "@mantine/core";
import { useDisclosure } from "@mantine/hooks";
import { Link, Outlet, useLocation } from "@tanstack/react-router";
import { lazy, Suspense, useEffect, useState } from "react";
import { Role } from "../../../gen/moltwire/api/v1/access_pb.ts";
import { OrganizationService } from "../../../gen/moltwire/federation/v1/organization_service_pb.ts";
import { SessionService } from "../../../gen/moltwire/ops/v1/session_service_pb.ts";
import { type Live, openLive } from "./live/store.ts";
import { LiveContext, useLive } from "./live/use-live.ts";
import { Palette } from "./palette.tsx";
import { useWord } from "./parts/address.ts";
import { State } from "./parts/show.tsx";
import { pages } from "./router.tsx";
import { useOrg, useSession } from "./session.ts";

const SetPassword = lazy(() => import("./set-password.tsx"));

/** What stands around every page. */
export function Layout() {
  const orgId = useOrg();
  const [live, setLive] = useState<Live>();
  const [opened, { toggle, close }] = useDisclosure(false);
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
              <UserMenu />
            </Group>
          </Group>
        </AppShell.Header>
        <AppShell.Navbar p="xs">
          <AppShell.Section grow component={ScrollArea}>
            {shown.map(({ path, title }) => (
              <NavLink
                key={path}
                component={Link}
                to={path}
                label={title}
                onClick={close}
                active={path === "/" ? pathname === "/" : pathname.startsWith(path)}
                {...((path === "/" ? pathname === "/" : pathname.startsWith(path)) && {
                  "aria-current": "page" as const,
                })}
              />
            ))}
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
  const [chosen, choose] = useWord("org");
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
    <Select
      aria-label="Organisation"
      size="xs"
      w={{ base: 110, sm: 180 }}
      data={choices.length > 0 ? choices : [{ value: session.orgId, label: session.orgName }]}
      value={chosen || session.orgId}
      onChange={(orgId) => choose(orgId === session.orgId ? "" : (orgId ?? ""))}
      searchable
      allowDeselect={false}
    />
  );
}

function UserMenu() {
  const { session, passwordSet } = useSession();
  const { colorScheme, setColorScheme } = useMantineColorScheme();
  const [asking, { open, close }] = useDisclosure(false);
  const signOut = useMutation(SessionService.method.signOut, {
    // A new page: nothing of what was seen stays.
    onSuccess: () => window.location.reload(),
  });
  const isOperator = session.role === Role.OPERATOR;
  return (
    <>
      <Menu position="bottom-end">
        <Menu.Target>
          <Button variant="default" size="compact-sm">
            {isOperator ? "operator" : "admin"}
            <VisuallyHidden> menu</VisuallyHidden>
          </Button>
        </Menu.Target>
        <Menu.Dropdown>
          <Menu.Label>{session.orgName}</Menu.Label>
          {(["light", "dark", "auto"] as const).map((scheme) => (
            <Menu.Item key={scheme} onClick={() => setColorScheme(scheme)} fw={scheme === colorScheme ? 700 : 400}>
              {scheme === "auto" ? "As the system" : scheme === "light" ? "Light" : "Dark"}
            </Menu.Item>
          ))}
          <Menu.Divider />
          {isOperator && <Menu.Item onClick={open}>{passwordSet ? "Change the password" : "Set a password"}</Menu.Item>}
          <Menu.Item onClick={() => signOut.mutate({})}>Sign out</Menu.Item>
        </Menu.Dropdown>
      </Menu>
      <Suspense>{asking && <SetPassword onClose={close} />}</Suspense>
    </>
  );
}
