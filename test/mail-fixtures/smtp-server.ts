/** A small mail server: as much of SMTP (RFC 5321) as the tests need, on a port of its own. */
import { createServer, type Server, type Socket } from "node:net";
import { createSecureContext, TLSSocket } from "node:tls";

/** A mail that was taken. */
export type Taken = {
  readonly from: string;
  readonly to: readonly string[];
  /** Headers and body as they came, without the dots of the protocol. */
  readonly text: string;
  readonly secure: boolean;
  readonly user: string;
};

export type SmtpOptions = {
  /** What to answer to the nth connection's mail instead of taking it, from 0: a line such as `451 not now`; empty: nothing, ever. */
  readonly refuse?: (nth: number) => string | undefined;
  /** Offers STARTTLS, with this certificate, and then AUTH. */
  readonly tls?: { readonly key: string; readonly cert: string };
};

export type SmtpServer = {
  readonly port: number;
  readonly taken: readonly Taken[];
  /** Every line that clients said in the clear. */
  readonly heard: readonly string[];
  readonly connections: () => number;
  /** Ends what is open, and listens no more. */
  [Symbol.asyncDispose](): Promise<void>;
};

export async function smtpServer(options: SmtpOptions = {}, port = 0): Promise<SmtpServer> {
  const taken: Taken[] = [];
  const heard: string[] = [];
  const open = new Set<Socket>();
  let connections = 0;
  const server: Server = createServer((socket) => {
    const nth = connections++;
    open.add(socket);
    socket.on("close", () => open.delete(socket));
    socket.on("error", () => {});
    serve(socket, { nth, options, taken, heard, secure: false });
    socket.write("220 test ESMTP\r\n");
  });
  await new Promise<void>((resolve) => server.listen(port, "127.0.0.1", resolve));
  return {
    port: (server.address() as { port: number }).port,
    taken,
    heard,
    connections: () => connections,
    async [Symbol.asyncDispose]() {
      for (const socket of open) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

type Session = {
  readonly nth: number;
  readonly options: SmtpOptions;
  readonly taken: Taken[];
  readonly heard: string[];
  readonly secure: boolean;
};

function serve(socket: Socket, session: Session): void {
  const { nth, options, taken, heard, secure } = session;
  const { tls } = options;
  let [rest, from, user] = ["", "", ""];
  let to: string[] = [];
  let body: string[] | undefined;
  const say = (line: string) => socket.write(`${line}\r\n`);
  const hear = (line: string): void => {
    if (!secure) heard.push(line);
    if (body) {
      if (line !== ".") return void body.push(line.startsWith(".") ? line.slice(1) : line);
      const refusal = options.refuse?.(nth);
      if (refusal === undefined) {
        taken.push({ from, to, text: body.join("\r\n"), secure, user });
        say("250 taken");
      } else if (refusal !== "") say(refusal);
      body = undefined;
      return;
    }
    const [verb, ...words] = line.split(" ");
    switch (verb!.toUpperCase()) {
      case "EHLO":
        if (tls && !secure) say("250-test\r\n250 STARTTLS");
        else say(tls ? "250-test\r\n250 AUTH PLAIN" : "250 test");
        return;
      case "STARTTLS": {
        say("220 go on");
        socket.removeListener("data", read);
        const inner = new TLSSocket(socket, { isServer: true, secureContext: createSecureContext(tls!) });
        inner.on("error", () => {});
        serve(inner, { ...session, secure: true });
        return;
      }
      case "AUTH":
        user = Buffer.from(words[1] ?? "", "base64")
          .toString()
          .split("\0")
          .slice(1)
          .join(":");
        return void say("235 welcome");
      case "MAIL":
        from = /<(.*)>/.exec(line)![1]!;
        to = [];
        return void say("250 ok");
      case "RCPT":
        to = [...to, /<(.*)>/.exec(line)![1]!];
        return void say("250 ok");
      case "DATA":
        body = [];
        return void say("354 go on");
      case "QUIT":
        say("221 bye");
        return void socket.end();
      default:
        say("502 what?");
    }
  };
  function read(chunk: Buffer): void {
    rest += chunk.toString("utf8");
    for (let end = rest.indexOf("\r\n"); end !== -1; end = rest.indexOf("\r\n")) {
      const line = rest.slice(0, end);
      rest = rest.slice(end + 2);
      hear(line);
    }
  }
  socket.on("data", read);
}
