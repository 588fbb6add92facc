import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { sweepContacts } from "../src/ops/contact-store.ts";
import { dialects, fakeClock, refusal, start, type World } from "./harness.ts";

const sent = { name: "Ada", email: "ada@example.org", subject: "Hello", message: "<b>how</b> are you?" };
const form = (fields: Record<string, string>) => ({
  method: "POST",
  headers: { "content-type": "application/x-www-form-urlencoded" },
  body: new URLSearchParams(fields).toString(),
});

describe.each(dialects)("%s", (dialect) => {
  let world: World;
  beforeAll(async () => {
    world = await start(dialect);
  });
  afterAll(() => world[Symbol.asyncDispose]());

  test("what people send is kept and shown to the operator alone, newest first, by page", async () => {
    for (const message of ["one", "two", "three"])
      await world.as(undefined).contacts.submitContact({ ...sent, message });
    const first = await world.operator.contacts.listContacts({ pageSize: 2 });
    const rest = await world.operator.contacts.listContacts({ pageSize: 2, pageToken: first.nextPageToken });
    const all = [...first.contacts, ...rest.contacts];
    expect(all.map(({ message }) => message)).toEqual(["three", "two", "one"]);
    expect(all[0]).toMatchObject({ ...sent, message: "three", clientAddress: "127.0.0.1" });
    expect(rest.nextPageToken).toBe("");
    const { admin } = await world.org();
    expect((await refusal(admin.contacts.listContacts({}))).reason).toBe("ROLE_REQUIRED");
    expect((await refusal(world.as(undefined).contacts.listContacts({}))).reason).toBe("KEY_MISSING");
    await sweepContacts(world.server.app);
    expect((await world.operator.contacts.listContacts({})).contacts).toHaveLength(3);
  });

  test.each([
    ["no address to answer to", { ...sent, email: "nowhere" }, "email"],
    ["no message", { ...sent, message: "" }, "message"],
    ["a message of 5,001 characters", { ...sent, message: "é".repeat(5_001) }, "message"],
  ])("%s is refused, by the method and by the page", async (_what, fields, field) => {
    expect((await refusal(world.as(undefined).contacts.submitContact(fields))).metadata.field).toBe(field);
    const answer = await fetch(`${world.url}/contact`, form(fields));
    expect([answer.status, await answer.text()]).toEqual([400, expect.stringContaining(`<p role="alert">${field}: `)]);
  });

  test("the page is a form without scripts and with nothing from elsewhere, and what it sends is kept", async () => {
    const blank = await fetch(`${world.url}/contact`);
    const policy = blank.headers.get("content-security-policy");
    expect(policy).toMatch(
      /^default-src 'none'; style-src 'sha256-[\w+/]+=*'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'$/,
    );
    const html = await blank.text();
    expect(html).toContain('<form method="post" action="/contact">');
    expect(html).not.toMatch(/<script|src=|href=|https?:|style="/);
    const answer = await fetch(`${world.url}/contact`, form({ ...sent, message: "by the form\r\nof two lines" }));
    expect([answer.status, await answer.text()]).toEqual([200, expect.stringContaining("Thank you")]);
    const { contacts } = await world.operator.contacts.listContacts({ pageSize: 1 });
    expect(contacts[0]).toMatchObject({ ...sent, message: "by the form\nof two lines", clientAddress: "127.0.0.1" });
  });

  test("what somebody typed comes back as text and never as markup", async () => {
    const answer = await fetch(
      `${world.url}/contact`,
      form({ ...sent, email: `"><script>alert(1)</script>`, message: "</textarea><script>" }),
    );
    const html = await answer.text();
    expect(html).not.toContain("<script>");
    expect(html).toContain("&quot;&gt;&lt;script&gt;alert(1)&lt;/script&gt;");
  });

  test("a form that is too large, or none, is refused", async () => {
    const large = await fetch(`${world.url}/contact`, form({ ...sent, message: "a".repeat(200_000) }));
    expect(large.status).toBe(413);
    const json = await fetch(`${world.url}/contact`, {
      ...form(sent),
      headers: { "content-type": "application/json" },
    });
    expect(json.status).toBeGreaterThanOrEqual(400);
    expect(json.status).toBeLessThan(500);
  });
});

test("an address sends a twelfth of the rate of calls, by the method and the page together, and goes on a minute later", async () => {
  const clock = fakeClock();
  await using world = await start("sqlite", { rateLimit: 24, clock });
  await world.as(undefined).contacts.submitContact(sent);
  expect((await fetch(`${world.url}/contact`, form(sent))).status).toBe(200);
  const refused = await refusal(world.as(undefined).contacts.submitContact(sent));
  expect([refused.reason, refused.metadata.limit]).toEqual(["RATE_LIMITED", "2"]);
  const answer = await fetch(`${world.url}/contact`, form(sent));
  expect([answer.status, answer.headers.get("retry-after")]).toEqual([429, "60"]);
  expect((await fetch(`${world.url}/contact`)).status).toBe(200);
  expect((await world.operator.contacts.listContacts({})).contacts).toHaveLength(2);
  clock.advance(60_001);
  await world.as(undefined).contacts.submitContact(sent);
});
