import { useEffect } from "react";

/** Has Escape close what lies on top, and only that: drawers open dialogs, and these the drawer of a command. Left to themselves all of them would close at once. */
export function useEscape(): void {
  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      const { target, key } = event;
      if (key !== "Escape" || event.isComposing || event.defaultPrevented) return;
      // The list of a choice that is open takes it first.
      if (target instanceof Element && target.getAttribute("data-mantine-stop-propagation") === "true") return;
      // What was opened last stands last.
      const top = [...document.querySelectorAll("[role=dialog]")].at(-1);
      top?.querySelector<HTMLElement>("button[aria-label=Close]")?.click();
    };
    window.addEventListener("keydown", onKey, true);
    return () => window.removeEventListener("keydown", onKey, true);
  }, []);
}
