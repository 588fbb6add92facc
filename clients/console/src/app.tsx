import { createConnectQueryKey, TransportProvider, useQuery } from "@connectrpc/connect-query";
import { Center, Loader, MantineProvider } from "@mantine/core";
import { QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { RouterProvider } from "@tanstack/react-router";
import { setNonce } from "get-nonce";
import { useEffect } from "react";
import { SessionService } from "../../../gen/moltwire/ops/v1/session_service_pb.ts";
import { Failure } from "./parts/failure.tsx";
import { router } from "./router.tsx";
import { SessionContext } from "./session.ts";
import { SignIn } from "./sign-in.tsx";
import { contrast, theme } from "./theme.ts";
import { onSignedOut, transport } from "./transport.ts";

/** The one nonce under which the page's policy takes styles that are made at run time. */
const nonce = document.querySelector<HTMLMetaElement>("meta[property=csp-nonce]")?.nonce ?? "";
setNonce(nonce);

const queries = new QueryClient({
  defaultOptions: { queries: { retry: false, staleTime: 2_000, refetchOnWindowFocus: false } },
});

export const App = () => (
  <MantineProvider theme={theme} cssVariablesResolver={contrast} defaultColorScheme="auto" getStyleNonce={() => nonce}>
    <TransportProvider transport={transport}>
      <QueryClientProvider client={queries}>
        <Door />
      </QueryClientProvider>
    </TransportProvider>
  </MantineProvider>
);

/** The console for who is signed in, and the way in for others. */
function Door() {
  const { data, error, isPending } = useQuery(SessionService.method.getSession, {});
  useEffect(
    () =>
      onSignedOut(() => {
        const queryKey = createConnectQueryKey({ schema: SessionService.method.getSession, cardinality: undefined });
        void queries.invalidateQueries({ queryKey });
      }),
    [],
  );
  if (isPending)
    return (
      <Center h="100vh">
        <Loader aria-label="Loading" />
      </Center>
    );
  if (error && !data)
    return (
      <Center h="100vh" p="md">
        <Failure error={error} />
      </Center>
    );
  if (!data?.session) return <SignIn passwordSet={data?.passwordSet ?? false} />;
  return (
    <SessionContext value={{ session: data.session, passwordSet: data.passwordSet }}>
      <RouterProvider router={router} />
    </SessionContext>
  );
}
