/** Headers as literals without indexing and without Huffman coding: RFC 7541, section 6.2.2. */
export const hpack = (headers: Record<string, string>): Buffer =>
  Buffer.concat(Object.entries(headers).flatMap(([name, value]) => [Buffer.from([0]), text(name), text(value)]));

/** A length of seven bits or more (section 5.1), and the bytes. */
function text(value: string): Buffer {
  const { length } = value;
  if (length < 127) return Buffer.concat([Buffer.from([length]), Buffer.from(value)]);
  const head = [127];
  let rest = length - 127;
  for (; rest >= 128; rest >>= 7) head.push((rest & 127) | 128);
  head.push(rest);
  return Buffer.concat([Buffer.from(head), Buffer.from(value)]);
}

/** The headers of a call of GetAgent. */
export const callHeaders = (key: string): Record<string, string> => ({
  ":method": "POST",
  ":scheme": "http",
  ":authority": "localhost",
  ":path": "/moltwire.bus.v1.AgentService/GetAgent",
  "content-type": "application/proto",
  authorization: `Bearer ${key}`,
});
