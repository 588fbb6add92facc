import { Button } from "@mantine/core";
import { useDisclosure, useHotkeys } from "@mantine/hooks";
import { lazy, Suspense, useEffect } from "react";
import { isTyping } from "./parts/list.tsx";

const PaletteModal = lazy(() => import("./palette-modal.tsx"));

/** Goes anywhere: by ⌘K or Ctrl K. `/` puts the cursor into the page's filter. */
export function Palette() {
  const [opened, { open, close }] = useDisclosure(false);
  useHotkeys([["mod+K", open]], []);
  useEffect(() => {
    const onKey = (event: globalThis.KeyboardEvent) => {
      if (event.key !== "/" || isTyping(event)) return;
      const filter = document.querySelector<HTMLElement>("main input");
      if (!filter) return;
      event.preventDefault();
      filter.focus();
    };
    window.addEventListener("keydown", onKey);
    return () => window.removeEventListener("keydown", onKey);
  }, []);

  return (
    <>
      <Button variant="default" size="compact-sm" onClick={open} visibleFrom="sm">
        Go to…
      </Button>
      <Suspense>{opened && <PaletteModal onClose={close} />}</Suspense>
    </>
  );
}
