/** Generates the code of the clients in other languages: `node scripts/clients/main.ts python go`. What a language lacks on this machine is told. */
import { generateGo } from "./go.ts";
import { generatePython } from "./python.ts";

const languages: Readonly<Record<string, () => Promise<object>>> = { python: generatePython, go: generateGo };

for (const name of process.argv.slice(2)) {
  const generate = languages[name];
  if (!generate) throw new Error(`${name} is none of ${Object.keys(languages).join(", ")}`);
  const made = await generate();
  if ("missing" in made) {
    console.error(made.missing);
    process.exitCode = 1;
  } else console.log(`clients/${name}: generated`);
}
