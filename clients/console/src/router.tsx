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
  { path: "/", title: "Overview", component: lazyRouteComponent(() => import("./pages/overview.tsx"), "Overview") },
  { path: "/activity", title: "Activity", component: lazyRouteComponent(() => import("./pages/activity.tsx"), "Activity") },
  { path: "/traces", title: "Traces", component: lazyRouteComponent(() => import("./pages/traces.tsx"), "Traces") },
  { path: "/approvals", title: "Approvals", component: lazyRouteComponent(() => import("./pages/approvals.tsx"), "Approvals") },
  { path: "/dead-letters", title: "Dead letters", component: lazyRouteComponent(() => import("./pages/dead-letters.tsx"), "DeadLetters") },
  { path: "/agents", title: "Agents", component: lazyRouteComponent(() => import("./pages/agents.tsx"), "Agents") },
  { path: "/contracts", title: "Contracts", component: lazyRouteComponent(() => import("./pages/contracts.tsx"), "Contracts") },
  { path: "/queues", title: "Queues", component: lazyRouteComponent(() => import("./pages/queues.tsx"), "Queues") },
  { path: "/schedules", title: "Schedules", component: lazyRouteComponent(() => import("./pages/schedules.tsx"), "Schedules") },
  { path: "/webhooks", title: "Webhooks", component: lazyRouteComponent(() => import("./pages/webhooks.tsx"), "Webhooks") },
  { path: "/policies", title: "Policies", component: lazyRouteComponent(() => import("./pages/policies.tsx"), "Policies") },
  { path: "/decisions", title: "Decisions", component: lazyRouteComponent(() => import("./pages/decisions.tsx"), "Decisions") },
  { path: "/budgets", title: "Budgets", component: lazyRouteComponent(() => import("./pages/budgets.tsx"), "Budgets") },
  { path: "/costs", title: "Costs", component: lazyRouteComponent(() => import("./pages/costs.tsx"), "Costs") },
  { path: "/grants", title: "Grants", component: lazyRouteComponent(() => import("./pages/grants.tsx"), "Grants") },
  { path: "/organizations", title: "Organisations", component: lazyRouteComponent(() => import("./pages/organizations.tsx"), "Organizations"), operator: true },
  { path: "/keys", title: "Keys", component: lazyRouteComponent(() => import("./pages/keys.tsx"), "Keys") },
  { path: "/audit", title: "Audit", component: lazyRouteComponent(() => import("./pages/audit.tsx"), "Audit") },
  { path: "/contacts", title: "Contacts", component: lazyRouteComponent(() => import("./pages/contacts.tsx"), "Contacts"), operator: true },
  { path: "/system", title: "System", component: lazyRouteComponent(() => import("./pages/system.tsx"), "System") },
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
