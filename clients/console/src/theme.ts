import { type CSSVariablesResolver, createTheme } from "@mantine/core";

export const theme = createTheme({
  primaryColor: "indigo",
  primaryShade: 8,
  respectReducedMotion: true,
  defaultRadius: "md",
  cursorType: "pointer",
  fontFamily: "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
  fontFamilyMonospace: "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace",
  components: {
    Button: { defaultProps: { fw: 500 } },
    // Escape closes them one by one: see parts/escape.ts.
    Drawer: { defaultProps: { closeOnEscape: false, closeButtonProps: { "aria-label": "Close" } } },
    Modal: { defaultProps: { closeOnEscape: false, closeButtonProps: { "aria-label": "Close" } } },
  },
  headings: { fontWeight: "600" },
});

/** Mantine's dimmed text is too pale for WCAG AA on its own backgrounds. */
export const contrast: CSSVariablesResolver = () => ({
  variables: {},
  light: {
    "--mantine-color-dimmed": "#495057",
    "--mantine-color-placeholder": "#5c636a",
    "--mantine-color-anchor": "#364fc7",
  },
  dark: {
    "--mantine-color-dimmed": "#b3b6bb",
    "--mantine-color-placeholder": "#9a9da3",
    "--mantine-color-anchor": "#91a7ff",
  },
});
