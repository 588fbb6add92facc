/**
 * Keeps what is held for others, in all, within `maxBytes`: above it, whatever has been held longest is cut, but never the newest alone. Call
 * what is given to hold something, and what that gives once it is let go.
 */
export function limitHeld(maxBytes: number): (bytes: number, cut: () => void) => () => void {
  const held = new Map<symbol, { readonly bytes: number; readonly cut: () => void }>();
  let total = 0;
  const release = (key: symbol) => {
    total -= held.get(key)?.bytes ?? 0;
    held.delete(key);
  };
  return (bytes, cut) => {
    const key = Symbol();
    held.set(key, { bytes, cut });
    total += bytes;
    for (const [oldest, one] of held) {
      if (total <= maxBytes || oldest === key) break;
      release(oldest);
      one.cut();
    }
    return () => release(key);
  };
}
