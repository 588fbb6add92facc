/** Every page, on one screen. Each is loaded when it is first looked at. The address is a hash, so that no path of the server's is ever meant. */
import {
  createHashHistory,
  createRootRoute,
  createRoute,
  createRouter,
  lazyRouteComponent,
  retainSearchParams,
} from "@tanstack/react-router";
import { Layout } from "./layout.tsx";

type Search = { org?: string; [word: string]: unknown };

const root = createRootRoute({
  component: Layout,
  validateSearch: (search: Record<string, unknown>): Search => search,
  search: { middlewares: [retainSearchParams(["org"])] },
});

// biome-ignore format: a table
export const pages = [
  { group: "Now", path: "/", title: "Overview", component: lazyRouteComponent(() => import("./pages/overview.tsx"), "Overview") },
  { group: "Now", path: "/activity", title: "Activity", component: lazyRouteComponent(() => import("./pages/activity.tsx"), "Activity") },
  { group: "Now", path: "/traces", title: "Traces", component: lazyRouteComponent(() => import("./pages/traces.tsx"), "Traces") },
  { group: "Now", path: "/approvals", title: "Approvals", component: lazyRouteComponent(() => import("./pages/approvals.tsx"), "Approvals") },
  { group: "Now", path: "/dead-letters", title: "Dead letters", component: lazyRouteComponent(() => import("./pages/dead-letters.tsx"), "DeadLetters") },
  { group: "Agents", path: "/agents", title: "Agents", component: lazyRouteComponent(() => import("./pages/agents.tsx"), "Agents") },
  { group: "Agents", path: "/directory", title: "Directory", component: lazyRouteComponent(() => import("./pages/directory.tsx"), "Directory") },
  { group: "Agents", path: "/contracts", title: "Contracts", component: lazyRouteComponent(() => import("./pages/contracts.tsx"), "Contracts") },
  { group: "Agents", path: "/memory", title: "Memory", component: lazyRouteComponent(() => import("./pages/memory.tsx"), "Memory") },
  { group: "Agents", path: "/shared-memory", title: "Shared memory", component: lazyRouteComponent(() => import("./pages/shared-memory.tsx"), "SharedMemory") },
  { group: "Agents", path: "/channels", title: "Channels", component: lazyRouteComponent(() => import("./pages/channels.tsx"), "Channels") },
  { group: "Agents", path: "/inboxes", title: "Inboxes", component: lazyRouteComponent(() => import("./pages/inboxes.tsx"), "Inboxes") },
  { group: "Work", path: "/queues", title: "Queues", component: lazyRouteComponent(() => import("./pages/queues.tsx"), "Queues") },
  { group: "Work", path: "/schedules", title: "Schedules", component: lazyRouteComponent(() => import("./pages/schedules.tsx"), "Schedules") },
  { group: "Work", path: "/webhooks", title: "Webhooks", component: lazyRouteComponent(() => import("./pages/webhooks.tsx"), "Webhooks") },
  { group: "Work", path: "/lab", title: "Lab", component: lazyRouteComponent(() => import("./pages/lab.tsx"), "Lab") },
  { group: "Rules", path: "/policies", title: "Policies", component: lazyRouteComponent(() => import("./pages/policies.tsx"), "Policies") },
  { group: "Rules", path: "/decisions", title: "Decisions", component: lazyRouteComponent(() => import("./pages/decisions.tsx"), "Decisions") },
  { group: "Rules", path: "/budgets", title: "Budgets", component: lazyRouteComponent(() => import("./pages/budgets.tsx"), "Budgets") },
  { group: "Rules", path: "/costs", title: "Costs", component: lazyRouteComponent(() => import("./pages/costs.tsx"), "Costs") },
  { group: "Trade", path: "/catalog", title: "Catalog", component: lazyRouteComponent(() => import("./pages/catalog.tsx"), "Catalog") },
  { group: "Trade", path: "/subscriptions", title: "Subscriptions", component: lazyRouteComponent(() => import("./pages/subscriptions.tsx"), "Subscriptions") },
  { group: "Trade", path: "/marketplace", title: "Marketplace", component: lazyRouteComponent(() => import("./pages/marketplace.tsx"), "Marketplace") },
  { group: "Trade", path: "/billing", title: "Billing", component: lazyRouteComponent(() => import("./pages/billing.tsx"), "Billing") },
  { group: "Trade", path: "/earnings", title: "Earnings", component: lazyRouteComponent(() => import("./pages/earnings.tsx"), "Earnings") },
  { group: "Trade", path: "/ledger", title: "Ledger", component: lazyRouteComponent(() => import("./pages/ledger.tsx"), "Ledger"), operator: true },
  { group: "Others", path: "/organizations", title: "Organisations", component: lazyRouteComponent(() => import("./pages/organizations.tsx"), "Organizations"), operator: true },
  { group: "Others", path: "/grants", title: "Grants", component: lazyRouteComponent(() => import("./pages/grants.tsx"), "Grants") },
  { group: "Others", path: "/peers", title: "Peers", component: lazyRouteComponent(() => import("./pages/peers.tsx"), "Peers"), operator: true },
  { group: "Others", path: "/keys", title: "Keys", component: lazyRouteComponent(() => import("./pages/keys.tsx"), "Keys") },
  { group: "Others", path: "/invites", title: "Invites", component: lazyRouteComponent(() => import("./pages/invites.tsx"), "Invites") },
  { group: "Server", path: "/audit", title: "Audit", component: lazyRouteComponent(() => import("./pages/audit.tsx"), "Audit") },
  { group: "Server", path: "/contacts", title: "Contacts", component: lazyRouteComponent(() => import("./pages/contacts.tsx"), "Contacts"), operator: true },
  { group: "Server", path: "/sla", title: "SLA", component: lazyRouteComponent(() => import("./pages/sla.tsx"), "Sla") },
  { group: "Server", path: "/system", title: "System", component: lazyRouteComponent(() => import("./pages/system.tsx"), "System") },
] as const;

const trace = createRoute({
  getParentRoute: () => root,
  path: "/traces/$traceId",
  component: lazyRouteComponent(() => import("./pages/trace.tsx"), "TracePage"),
});

export const router = createRouter({
  routeTree: root.addChildren([
    ...pages.map(({ path, component }) => createRoute({ getParentRoute: () => root, path, component })),
    trace,
  ]),
  history: createHashHistory(),
  defaultPreload: "intent",
  defaultNotFoundComponent: () => <p>There is no such page.</p>,
});
