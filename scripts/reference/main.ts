/** Writes what is told of the API from its protos and settings: gen/openapi.json and the tables in docs/reference. Part of `npm run generate`. */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { settings } from "../../src/config.ts";
import { services } from "../../src/services.ts";
import { reasonsOf } from "./errors.ts";
import { readImage } from "./image.ts";
import { openApi } from "./openapi.ts";
import { accessTable, environmentExample, errorsTable, settingsTable } from "./tables.ts";

const root = join(import.meta.dirname, "../..");
const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { version: string };

const image = readImage();
const commented = services.map(({ typeName }) => {
  const service = image.getService(typeName);
  if (!service) throw new Error(`${typeName} is served and not in the protos`);
  return service;
});
const reasons = reasonsOf(image.getEnum("moltwire.api.v1.ErrorReason")!);

const write = (file: string, text: string) => {
  mkdirSync(join(root, file, ".."), { recursive: true });
  writeFileSync(join(root, file), text);
};
write("gen/openapi.json", `${JSON.stringify(openApi(commented, reasons, version), null, 1)}\n`);
write("docs/reference/errors.md", errorsTable(reasons));
write("docs/reference/access.md", accessTable(commented));
write("docs/reference/configuration.md", settingsTable(settings));
write("deploy/.env.example", environmentExample(settings));
