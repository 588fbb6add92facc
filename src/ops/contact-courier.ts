/**
 * Mails what people sent by the contact form to the operator, beside the calls that brought it: what is to be mailed stands in the rows themselves, so that it is
 * mailed after a restart too. Any number of replicas do so at once. At least once: a mail whose end was not written down is sent again.
 */
import type { App } from "../app.ts";
import type { Resolve } from "../egress/resolve.ts";
import { asEntry, openSockets } from "../egress/socket.ts";
import { claimMail, type DueMail, endMail, letterOf, mailTopic } from "./contact-store.ts";
import { mailTimeoutMs, sendMail } from "./mail.ts";

const minute = 60_000;
/** After how many attempts which wait: the last one is followed by none. About a day in all. */
const waitsMs = [1, 5, 15, 60, 180, 360, 720].map((minutes) => minutes * minute);
/** Longer than sending can take. */
const leaseMs = mailTimeoutMs + 60_000;
/** Bells can be lost with a connection, and retries come due without one. */
const pollMs = 1_000;
const patienceMs = 5_000;

export type ContactCourier = {
  begin(): void;
  /** Waits for the mail under way. To be called after `app.stopping` and `app.ending` have aborted. */
  ended(): Promise<void>;
};

/** When another attempt is due after so many; null: none is made. */
export const nextAttemptMs = (attempts: number, now: number): number | null => {
  const waitMs = waitsMs[attempts - 1];
  return waitMs === undefined ? null : now + waitMs;
};

export function createContactCourier(app: App, resolve: Resolve | undefined): ContactCourier {
  const mails = app.metrics.counter("moltwire_contact_mails_total", "Attempts to mail what the contact form took", [
    "result",
  ]);
  for (const result of ["sent", "failed", "given_up"]) mails.inc({ result }, 0);
  const { mail } = app.config;
  if (!mail) return { begin() {}, ended: async () => {} };
  // The operator has named the server, so it may be reached wherever it is.
  const openSocket = openSockets({ allow: [...app.config.egressAllow, asEntry(mail.server)], resolve });
  const bell = app.db.listen(mailTopic, app.stopping);
  let loop = Promise.resolve();

  const deliver = async (due: DueMail): Promise<void> => {
    const attempts = due.mail_attempts;
    try {
      await sendMail(mail, openSocket, letterOf(app, due), app.ending);
      await app.db.tx((tx) => endMail(tx, app.homeOrgId, due, null, app.clock.now()));
      mails.inc({ result: "sent" });
    } catch (error) {
      const now = app.clock.now();
      // Not its fault if the server stops.
      const next = app.ending.aborted ? now : nextAttemptMs(attempts, now);
      app.log.warn({ err: error, contact_id: due.contact_id, attempts }, "a contact could not be mailed");
      await app.db.tx((tx) => endMail(tx, app.homeOrgId, due, next, null));
      mails.inc({ result: next === null ? "given_up" : "failed" });
    }
  };

  const run = async (): Promise<void> => {
    while (!app.stopping.aborted) {
      try {
        const due = await app.db.tx((tx) => claimMail(tx, app.homeOrgId, app.clock.now(), leaseMs));
        if (due) await deliver(due);
        else await bell.wait(pollMs, app.stopping);
      } catch (error) {
        if (app.stopping.aborted) return;
        app.log.error({ err: error }, "contacts could not be mailed");
        await app.clock.sleep(patienceMs, app.stopping).catch(() => {});
      }
    }
  };

  return {
    begin() {
      loop = run();
    },
    ended: () => loop,
  };
}
