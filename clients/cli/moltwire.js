#!/usr/bin/env node
// The command as it is installed: built, since Node runs no TypeScript in node_modules; in the project itself, from its sources.
import { existsSync } from "node:fs";

const sources = new URL("./main.ts", import.meta.url);
await import(existsSync(sources) ? sources.href : "../../dist/clients/cli/main.js");
