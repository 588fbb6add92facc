/** HTML of the reference: everything that is put into it is escaped here. */
import { createHash } from "node:crypto";

const style = `
body { font: 16px/1.55 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem 1rem 6rem; color: #1a1a1a; background: #fff; }
h1 { font-size: 1.6rem; } h2 { margin-top: 3rem; border-top: 1px solid #ccc; padding-top: 1rem; } h3 { margin: 2rem 0 .25rem; }
a { color: #0b5cad; } code, pre { font: 14px/1.5 ui-monospace, monospace; } code { background: #f1f3f5; padding: 0 .2em; }
pre { background: #f1f3f5; padding: .75rem; overflow-x: auto; } pre code { padding: 0; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; vertical-align: top; padding: .35rem .75rem .35rem 0; border-bottom: 1px solid #ddd; }
td:first-child { white-space: nowrap; } td p { margin: 0 0 .25rem; } .path { color: #555; } .limits { color: #555; }
@media (prefers-color-scheme: dark) { body { color: #e9ecef; background: #141414; } a { color: #74c0fc; } code, pre { background: #25262b; } th, td { border-color: #444; } .path, .limits { color: #adb5bd; } }
`;
const styleHash = createHash("sha256").update(style).digest("base64");

/** No script runs, and nothing is loaded, framed or sent. */
export const pageHeaders = {
  "content-security-policy": `default-src 'none'; style-src 'sha256-${styleHash}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'`,
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-resource-policy": "same-origin",
};

const entities: Readonly<Record<string, string>> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  '"': "&quot;",
  "'": "&#39;",
};

/** Text as it can stand in an element or a quoted attribute. */
export const escaped = (text: string): string => text.replace(/[&<>"']/g, (one) => entities[one]!);

const inline = (text: string): string => escaped(text).replace(/`([^`]+)`/g, "<code>$1</code>");

/** Paragraphs, lists and `code`, which is all that comments use. */
export function prose(text: string): string {
  return text
    .split("\n\n")
    .map((block) => {
      const lines = block.split("\n");
      if (!lines.every((line) => /^[-*•] /.test(line))) return `<p>${lines.map(inline).join("<br>")}</p>`;
      return `<ul>${lines.map((line) => `<li>${inline(line.slice(2))}</li>`).join("")}</ul>`;
    })
    .join("");
}

/** A whole page; the body is HTML. */
export const page = (title: string, body: string): string =>
  `<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>${escaped(title)}</title><style>${style}</style></head><body>${body}</body></html>`;
