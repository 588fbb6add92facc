/** Sends one mail: by nodemailer, on a connection that the egress guard has let through. */
import type { Socket } from "node:net";
import { createTransport } from "nodemailer";
import type { Options } from "nodemailer/lib/smtp-transport/index.js";
import type { OpenSocket } from "../egress/socket.ts";
import type { Mail } from "./mail-settings.ts";

/** What somebody sent to the operator. */
export type Letter = {
  readonly contactId: string;
  readonly name: string;
  readonly email: string;
  readonly subject: string;
  readonly message: string;
  readonly address: string;
  readonly timeMs: number;
};

/** How long one mail may take, from connecting on. */
export const mailTimeoutMs = 60_000;
const connectMs = 10_000;
const waitMs = 30_000;

/**
 * Hands the letter to the mail server; rejects if that did not take it, or may not have. The id of the mail is made of the letter's, so that one that is sent twice
 * can be told.
 *
 * Nothing that somebody typed becomes a header but subject and reply address, each one line, encoded by nodemailer; it reads no file and no URL for it.
 */
export async function sendMail(mail: Mail, openSocket: OpenSocket, letter: Letter, signal: AbortSignal): Promise<void> {
  const { server, to, from } = mail;
  const inTime = AbortSignal.any([signal, AbortSignal.timeout(mailTimeoutMs)]);
  let socket: Socket | undefined;
  const giveUp = () => socket?.destroy(new Error("sending the mail was given up"));
  inTime.addEventListener("abort", giveUp, { once: true });
  const options: Options = {
    ...{ host: server.host, port: server.port, secure: server.secure },
    ...(server.auth && { auth: server.auth }),
    requireTLS: server.auth !== undefined,
    name: from.slice(from.indexOf("@") + 1),
    ...{ connectionTimeout: connectMs, greetingTimeout: connectMs, socketTimeout: waitMs },
    ...{ disableFileAccess: true, disableUrlAccess: true },
    getSocket(_options, callback) {
      openSocket(server, connectMs, inTime).then(
        (connection) => {
          socket = connection;
          callback(null, { connection });
        },
        (error: Error) => callback(error, undefined),
      );
    },
  };
  const transport = createTransport(options);
  try {
    await transport.sendMail({
      ...{ from, to, envelope: { from, to } },
      replyTo: { name: oneLine(letter.name), address: letter.email },
      subject: oneLine(`Contact: ${letter.subject || "(no subject)"}`),
      messageId: `<${letter.contactId}@${from.slice(from.indexOf("@") + 1)}>`,
      date: new Date(letter.timeMs),
      headers: { "Auto-Submitted": "auto-generated" },
      text: textOf(letter),
    });
  } finally {
    inTime.removeEventListener("abort", giveUp);
    transport.close();
    socket?.destroy();
  }
}

const oneLine = (text: string): string => text.replaceAll(/[\p{Cc}\p{Zl}\p{Zp}]+/gu, " ");

const textOf = ({ contactId, name, email, message, address }: Letter): string =>
  `${message}\n\n-- \nFrom: ${oneLine(name)} <${email}>, as they say\nAddress: ${address}\nKept as ${contactId}\n`;
