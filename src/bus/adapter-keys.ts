/** Environment variables of the server that agents' endpoints may name as their key: each only for the origins that the operator gave it to. */

/** A variable and an origin that its value may be sent to. */
export type AdapterKey = { readonly name: string; readonly origin: string };

const maxEntries = 100;

/**
 * Reads `NAME@https://origin, …`.
 *
 * @throws Error naming the first bad entry and what an entry looks like.
 */
export function parseAdapterKeys(list: string): readonly AdapterKey[] {
  const entries = list
    .split(",")
    .map((entry) => entry.trim())
    .filter((entry) => entry !== "");
  if (entries.length > maxEntries) throw new Error(`has ${entries.length} entries, more than ${maxEntries}`);
  return entries.map((entry) => {
    const [, name, origin] = /^([A-Za-z_][A-Za-z0-9_]{0,127})@(.+)$/.exec(entry) ?? [];
    if (!name || !origin)
      throw new Error(`"${entry}" is not a variable, "@" and an origin, such as OPENAI_API_KEY@https://api.openai.com`);
    if (name.startsWith("MOLTWIRE_")) throw new Error(`"${entry}" would send out a setting of this server`);
    if (!/^https?:/.test(origin) || URL.parse(origin)?.origin !== origin)
      throw new Error(
        `"${entry}": "${origin}" is no origin; it has a scheme, a host, perhaps a port, and nothing after`,
      );
    return { name, origin };
  });
}

/** Whether the variable's value may be sent to this URL. */
export const mayUse = (keys: readonly AdapterKey[], name: string, url: string): boolean =>
  keys.some((key) => key.name === name && key.origin === URL.parse(url)?.origin);

/** What to tell whoever may not. */
export const notBound = (name: string): string =>
  `the operator has not given the variable ${name} to this origin with MOLTWIRE_ADAPTER_KEYS`;
