/**
 * The bytes of base64 (RFC 4648): standard or URL-safe, with or without padding, white space left out. Undefined for anything else, also for a last letter whose
 * unused bits are set: bytes have one spelling.
 */
export function decodeBase64(text: string): Uint8Array | undefined {
  const letters = text.replaceAll(/\s/g, "").replaceAll("-", "+").replaceAll("_", "/");
  const bytes = Buffer.from(letters, "base64");
  const padded = bytes.toString("base64");
  return letters === padded || letters === padded.replace(/=+$/, "") ? bytes : undefined;
}
