import { mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { getCACertificates, setDefaultCACertificates } from "node:tls";
import { describe, expect, test } from "vitest";
import { readConfig } from "../src/config.ts";
import { sql } from "../src/db/db.ts";
import { openSockets } from "../src/egress/socket.ts";
import { nextAttemptMs } from "../src/ops/contact-courier.ts";
import { mailTimeoutMs } from "../src/ops/mail.ts";
import { type Mail, parseSmtpUrl } from "../src/ops/mail-settings.ts";
import { migratedDatabase } from "./engines.ts";
import { dialects, eventually, fakeClock, start, type World } from "./harness.ts";
import { type SmtpServer, smtpServer } from "./mail-fixtures/smtp-server.ts";
import { makePair } from "./tls-fixtures/certificates.ts";

const sent = { name: "Ada", email: "ada@example.org", subject: "Hello", message: "how are you?\n.\nBye" };
const mailAt = (port: number, more: Partial<Mail["server"]> = {}): Mail => ({
  server: { host: "127.0.0.1", port, secure: false, ...more },
  to: "ops@example.org",
  from: "server@example.net",
});
const listed = async (world: World) => (await world.operator.contacts.listContacts({})).contacts;
/** The headers of a mail, those that go on over several lines as one. */
const headersOf = (text: string): Record<string, string> =>
  Object.fromEntries(
    text
      .split("\r\n\r\n", 1)[0]!
      .replaceAll(/\r\n[ \t]+/g, " ")
      .split("\r\n")
      .map((line) => [line.slice(0, line.indexOf(":")).toLowerCase(), line.slice(line.indexOf(":") + 1).trim()]),
  );
const unmailed = sql`select count(*) as n from contact where mail_ms is null`;
/** When the newest contact is due to be mailed. */
const due = async ({ server: { app } }: World) =>
  (await app.db.query.one<{ mail_due_ms: number | null }>(
    sql`select mail_due_ms from contact order by contact_id desc limit 1`,
  ))!.mail_due_ms;
async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as { port: number };
  await new Promise((resolve) => server.close(resolve));
  return port;
}
const oneTaken = (server: SmtpServer) => eventually(() => server.taken.length === 1 && server.taken[0]!);

describe.each(dialects)("mail of the contact form on %s", (dialect) => {
  test("what people send is mailed once, by the method and by the page, and the list says when", async () => {
    await using smtp = await smtpServer();
    await using world = await start(dialect, { mail: mailAt(smtp.port), egressAllow: [] });
    const { contactId } = await world.as(undefined).contacts.submitContact(sent);
    const { from, to, text } = await oneTaken(smtp);
    expect([from, to]).toEqual(["server@example.net", ["ops@example.org"]]);
    expect(headersOf(text)).toMatchObject({
      ...{ from: "server@example.net", to: "ops@example.org", "reply-to": "Ada <ada@example.org>" },
      ...{ subject: "Contact: Hello", "message-id": `<${contactId}@example.net>`, "auto-submitted": "auto-generated" },
    });
    expect(text).toContain("how are you?\r\n.\r\nBye");
    expect(text).toContain("Address: 127.0.0.1\r\n");
    const body = new URLSearchParams({ ...sent, message: "by the page" }).toString();
    const headers = { "content-type": "application/x-www-form-urlencoded" };
    expect((await fetch(`${world.url}/contact`, { method: "POST", headers, body })).status).toBe(200);
    await eventually(() => smtp.taken.length === 2);
    const contacts = await eventually(async () => {
      const all = await listed(world);
      return all.every(({ mailTime }) => mailTime) && all;
    });
    expect(contacts).toHaveLength(2);
    expect(smtp.connections()).toBe(2);
  });

  test("a mail server that is away, hangs or refuses delays no answer, and is tried again until it takes it", async () => {
    const clock = fakeClock();
    const refusals = ["451 not now", "554 no", ""];
    await using smtp = await smtpServer({ refuse: (nth) => refusals[nth] });
    await using world = await start(dialect, { clock, mail: mailAt(smtp.port), drainMs: 100 });
    await world.as(undefined).contacts.submitContact(sent);
    for (const [n, waitMs] of [60_000, 300_000].entries()) {
      await eventually(() => smtp.connections() === n + 1);
      await eventually(async () => (await due(world)) === clock.now() + waitMs);
      clock.advance(waitMs);
    }
    await eventually(() => smtp.connections() === 3);
    const again = performance.now();
    await world.as(undefined).contacts.submitContact(sent);
    // Half of what the mail server is given to answer.
    expect(performance.now() - again).toBeLessThan(mailTimeoutMs / 2);
    expect(smtp.taken).toEqual([]);
  });

  test("what was not mailed when the server stopped is mailed when it is back", async () => {
    const database = dialect === "postgres" ? await migratedDatabase() : undefined;
    const data = mkdtempSync(join(tmpdir(), "mail-"));
    const port = await freePort();
    try {
      const clock = fakeClock();
      const options = { data, mail: mailAt(port), clock, ...(database && { databaseUrl: database.url }) };
      {
        await using world = await start(dialect, options);
        await world.as(undefined).contacts.submitContact(sent);
        await eventually(async () => (await due(world)) === clock.now() + 60_000);
      }
      clock.advance(60_000);
      await using smtp = await smtpServer({}, port);
      await using world = await start(dialect, options);
      await oneTaken(smtp);
      await eventually(async () => (await due(world)) === null);
    } finally {
      rmSync(data, { recursive: true, force: true });
      await database?.drop();
    }
  });

  test.runIf(dialect === "postgres")("two servers mail it once", async () => {
    const database = await migratedDatabase();
    await using smtp = await smtpServer();
    try {
      const options = { mail: mailAt(smtp.port), databaseUrl: database.url };
      await using one = await start(dialect, options);
      await using _two = await start(dialect, options);
      for (let n = 0; n < 10; n++) await one.as(undefined).contacts.submitContact({ ...sent, message: `${n}` });
      await eventually(async () => (await one.server.app.db.query.all<{ n: number }>(unmailed))[0]!.n === 0);
      expect(smtp.taken).toHaveLength(10);
    } finally {
      await database.drop();
    }
  });
});

describe("a mail", () => {
  test("has no header and no recipient but its own, whatever somebody types", async () => {
    await using smtp = await smtpServer();
    await using world = await start("sqlite", { mail: mailAt(smtp.port) });
    const evil = {
      name: "Eve\r\nBcc: all@example.org\u2028X-Evil: 1",
      email: "eve@example.org",
      subject: "Hi\r\nTo: all@example.org\r\n\r\nbody\u0007\u0085X-Evil: 2",
      message: ".\r\nMAIL FROM:<x@example.org>\r\n\r\nBcc: all@example.org",
    };
    await world.as(undefined).contacts.submitContact(evil);
    const { to, text } = await oneTaken(smtp);
    expect(to).toEqual(["ops@example.org"]);
    const headers = headersOf(text);
    expect(Object.keys(headers)).not.toContain("bcc");
    expect(Object.keys(headers).filter((name) => name.startsWith("x-"))).toEqual([]);
    expect(headers.to).toBe("ops@example.org");
    expect(text.split("\r\n\r\n", 1)[0]!.match(/^to:/gim)).toHaveLength(1);
    expect(smtp.connections()).toBe(1);
    const [contact] = await listed(world);
    expect(contact).toMatchObject(evil);
  });

  test("and its password go out over TLS, or not at all", async () => {
    const auth = { user: "me", pass: "canary-password" };
    await using plain = await smtpServer();
    const clock = fakeClock();
    await using bare = await start("sqlite", { mail: mailAt(plain.port, { auth }), clock });
    await bare.as(undefined).contacts.submitContact(sent);
    await eventually(async () => (await due(bare)) === clock.now() + 60_000);
    expect(plain.connections()).toBe(1);
    expect(plain.taken).toEqual([]);
    expect(plain.heard.join("\n")).not.toMatch(/AUTH|Y2FuYXJ5|canary|MAIL/);
  });

  test("is sent by STARTTLS with its password to a server that offers it", async () => {
    const tls = makePair();
    const before = getCACertificates();
    setDefaultCACertificates([...before, tls.cert]);
    try {
      await using smtp = await smtpServer({ tls });
      const auth = { user: "me", pass: "canary-password" };
      await using world = await start("sqlite", { mail: mailAt(smtp.port, { host: "localhost", auth }) });
      await world.as(undefined).contacts.submitContact(sent);
      expect(await oneTaken(smtp)).toMatchObject({ secure: true, user: "me:canary-password" });
      expect(smtp.heard.join("\n")).not.toMatch(/AUTH|MAIL|canary/);
    } finally {
      setDefaultCACertificates(before);
    }
  });

  test("is not sent to a server whose certificate is not good", async () => {
    await using smtp = await smtpServer({ tls: makePair() });
    const auth = { user: "me", pass: "canary-password" };
    const clock = fakeClock();
    await using world = await start("sqlite", { mail: mailAt(smtp.port, { host: "localhost", auth }), clock });
    await world.as(undefined).contacts.submitContact(sent);
    await eventually(async () => (await due(world)) === clock.now() + 60_000);
    expect(smtp.connections()).toBe(1);
    expect(smtp.taken).toEqual([]);
  });

  test("goes out by the guard, which refuses what nobody has named", async () => {
    await using smtp = await smtpServer();
    const { signal } = new AbortController();
    const open = openSockets({ allow: [], resolve: async () => ["127.0.0.1"] });
    for (const host of ["127.0.0.1", "localhost", "mail.example.org"])
      await expect(open({ host, port: smtp.port }, 1_000, signal)).rejects.toMatchObject({ kind: "denied" });
    expect(smtp.connections()).toBe(0);
  });

  test("reaches the server that the operator named, wherever that is", async () => {
    await using smtp = await smtpServer();
    await using world = await start("sqlite", {
      mail: mailAt(smtp.port, { host: "mail.example.org" }),
      egressAllow: [],
      resolve: async () => ["127.0.0.1"],
    });
    await world.as(undefined).contacts.submitContact(sent);
    await oneTaken(smtp);
  });

  test("is tried eight times in about a day", () => {
    const waits = [1, 2, 3, 4, 5, 6, 7, 8].map((attempts) => nextAttemptMs(attempts, 0));
    expect(waits.at(-1)).toBeNull();
    const allMs = waits.reduce<number>((sum, wait) => sum + (wait ?? 0), 0);
    expect(allMs / 3_600_000).toBeGreaterThan(20);
    expect(allMs / 3_600_000).toBeLessThan(26);
  });
});

test("the settings of mail are read, and a wrong one says what is right and no password", () => {
  expect(parseSmtpUrl("smtp://Mail.example.org")).toEqual({ host: "mail.example.org", port: 587, secure: false });
  expect(parseSmtpUrl("smtps://a%40b:p%3Aw@[::1]:80")).toEqual({
    ...{ host: "::1", port: 80, secure: true },
    auth: { user: "a@b", pass: "p:w" },
  });
  expect(parseSmtpUrl("smtp://u:p@h:443/").port).toBe(443);
  for (const url of ["http://h", "smtp://", "smtp://h:0", "smtp://h:99999", "smtp://h/path", "smtp://secret@h/x?y"])
    expect(() => parseSmtpUrl(url)).toThrow(/^must be smtp:\/\/host:port or/);
  const read = (env: Record<string, string>) => readConfig([], env).mail;
  const server = { MOLTWIRE_SMTP_URL: "smtp://h:25" };
  expect(read({ ...server, MOLTWIRE_CONTACT_TO: "a@b.org" })).toEqual({
    ...{ server: { host: "h", port: 25, secure: false }, to: "a@b.org", from: "a@b.org" },
  });
  expect(read({})).toBeUndefined();
  expect(() => read(server)).toThrow(/needs MOLTWIRE_CONTACT_TO/);
  expect(() => read({ MOLTWIRE_CONTACT_TO: "a@b.org" })).toThrow(/without MOLTWIRE_SMTP_URL/);
  for (const to of ["a@b, c@d", "a b@c", "<a@b>", "a@b\nBcc: c@d", "a"])
    expect(() => read({ ...server, MOLTWIRE_CONTACT_TO: to })).toThrow(/must be one mail address/);
});
