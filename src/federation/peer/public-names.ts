/** The names that other servers call this one by, as the operator lists them. */

const maxNames = 16;

/**
 * Reads the operator's list: hosts, each with its port where that is not 443 (or 80 without TLS), with commas between, at most 16. Throws an Error naming the first bad one. They come back as URLs have them: in
 * lower case, without a usual port.
 */
export function parsePublicNames(list: string): readonly string[] {
  const names = list
    .split(",")
    .map((name) => name.trim())
    .filter((name) => name !== "");
  if (names.length > maxNames) throw new Error(`has ${names.length} names, more than ${maxNames}`);
  return names.map((name) => {
    const url = URL.parse(`https://${name}`);
    if (!url || url.href !== `https://${url.host}/` || /[/?#@]/.test(name))
      throw new Error(`"${name}" is not a host, perhaps with a port, such as api.example.com or api.example.com:8443`);
    return url.host;
  });
}

/** The URLs one of which a request to `url` has to be signed for: that of each public name; where none is set, the one that it says itself. */
export const signedUrls = (names: readonly string[], url: string): string[] =>
  names.length === 0 ? [url] : names.map((name) => `https://${name}${new URL(url).pathname}`);
