/** `/contact`: the form of ContactService for people. One page without scripts, and with nothing from elsewhere. */
import { createHash } from "node:crypto";
import { create } from "@bufbuild/protobuf";
import { createValidator } from "@bufbuild/protovalidate";
import type { FastifyInstance, FastifyReply } from "fastify";
import { SubmitContactRequestSchema } from "../../gen/moltwire/ops/v1/contact_service_pb.ts";
import type { App } from "../app.ts";
import { Fault } from "../errors.ts";
import { clientAddress } from "../rpc/client-address.ts";
import { addressGroup, type Limiters, take } from "../rpc/limits.ts";
import { insertContact } from "./contact-store.ts";

/** All fields, each character of up to twelve bytes as forms write them. */
const maxFormBytes = 131_072;

const style = `
body { font: 16px/1.5 system-ui, sans-serif; max-width: 36rem; margin: 3rem auto; padding: 0 1rem; color: #1a1a1a; background: #fff; }
label { display: block; margin: 1rem 0 0; }
input, textarea { font: inherit; box-sizing: border-box; width: 100%; padding: .5rem; border: 1px solid #767676; border-radius: 4px; }
textarea { min-height: 10rem; }
button { font: inherit; margin-top: 1rem; padding: .5rem 1.5rem; }
[role=alert] { color: #a00000; }
`;
const styleHash = createHash("sha256").update(style).digest("base64");

/** Nothing runs, nothing is loaded, and the form goes nowhere else. */
const headers = {
  "content-security-policy": `default-src 'none'; style-src 'sha256-${styleHash}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'`,
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
  "cache-control": "no-store",
};

type Fields = Readonly<Record<"name" | "email" | "subject" | "message", string>>;
const empty: Fields = { name: "", email: "", subject: "", message: "" };

/** Serves the form and takes what it sends, with the limits of SubmitContact: of its fields, and of how often an address may. */
export function serveContactPage(http: FastifyInstance, app: App, limiters: Limiters): void {
  const validator = createValidator();
  void http.register(async (scope) => {
    scope.addContentTypeParser(
      "application/x-www-form-urlencoded",
      { parseAs: "string", bodyLimit: maxFormBytes },
      (_request, body, done) => done(null, new URLSearchParams(body as string)),
    );
    scope.get("/contact", (_request, reply) => answer(reply, 200, formPage(empty, "")));
    scope.post("/contact", async (request, reply) => {
      const form = request.body instanceof URLSearchParams ? request.body : new URLSearchParams();
      const field = (name: keyof Fields) => (form.get(name) ?? "").replaceAll("\r\n", "\n").toWellFormed();
      const fields = {
        name: field("name"),
        email: field("email"),
        subject: field("subject"),
        message: field("message"),
      };
      const address = clientAddress(request);
      const tooMany = await refusal(limiters, address);
      if (tooMany) {
        reply.header("retry-after", String(tooMany.retryAfterS));
        return answer(reply, 429, formPage(fields, tooMany.message));
      }
      const sent = create(SubmitContactRequestSchema, fields);
      const checked = validator.validate(SubmitContactRequestSchema, sent);
      if (checked.kind !== "valid") {
        const faults = checked.violations?.map(({ field, message }) => `${validatedName(field)}: ${message}`) ?? [];
        return answer(reply, 400, formPage(fields, faults.join("; ")));
      }
      const now = app.clock.now();
      await app.db.tx((tx) => insertContact(tx, app, sent, address, now));
      return answer(reply, 200, page("<h1>Thank you</h1><p>Your message has arrived.</p>"));
    });
  });
}

/** Why the address may not send now, if it may not. */
async function refusal(
  limiters: Limiters,
  address: string,
): Promise<{ readonly message: string; readonly retryAfterS: number } | undefined> {
  try {
    await take(limiters.doors, "address", addressGroup(address), new Headers());
    return undefined;
  } catch (error) {
    if (!(error instanceof Fault)) throw error;
    return { message: error.message, retryAfterS: Math.ceil((error.details.retryAfterMs ?? 1_000) / 1_000) };
  }
}

const validatedName = (path: readonly object[]): string => {
  const [first] = path;
  return first && "name" in first ? String(first.name) : "form";
};

const answer = (reply: FastifyReply, status: number, html: string): FastifyReply =>
  reply.code(status).headers(headers).type("text/html; charset=utf-8").send(html);

const escaped = (text: string): string =>
  text
    .replaceAll("&", "&amp;")
    .replaceAll("<", "&lt;")
    .replaceAll(">", "&gt;")
    .replaceAll('"', "&quot;")
    .replaceAll("'", "&#39;");

const page = (body: string): string =>
  `<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Contact</title><style>${style}</style></head><body>${body}</body></html>`;

const formPage = ({ name, email, subject, message }: Fields, fault: string): string =>
  page(`<h1>Contact</h1>${fault === "" ? "" : `<p role="alert">${escaped(fault)}</p>`}
<form method="post" action="/contact">
<label>Name <input name="name" maxlength="100" autocomplete="name" value="${escaped(name)}"></label>
<label>E-mail <input name="email" type="email" maxlength="254" required autocomplete="email" value="${escaped(email)}"></label>
<label>Subject <input name="subject" maxlength="200" value="${escaped(subject)}"></label>
<label>Message <textarea name="message" maxlength="5000" required>
${escaped(message)}</textarea></label>
<button>Send</button>
</form>`);
