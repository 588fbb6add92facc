/** Certificates, made by `openssl` for one test. */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** A certificate with its key, as PEM. */
export type Pair = { readonly cert: string; readonly key: string };

/** How a certificate is to be made. */
export type Wanted = { readonly name?: string; readonly issuer?: Pair; readonly from?: string; readonly to?: string };

/** A folder that is gone after the test. */
export function folder(): { readonly path: string; [Symbol.dispose](): void } {
  const path = mkdtempSync(join(tmpdir(), "moltwire-tls-"));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) };
}

/** A new certificate for localhost and 127.0.0.1: self-signed unless there is an issuer, valid for a day unless told (YYYYMMDDHHMMSSZ). */
export function makePair({ name = "localhost", issuer, from, to }: Wanted = {}): Pair {
  using at = folder();
  const file = (of: string) => join(at.path, of);
  const openssl = (...args: string[]) => execFileSync("openssl", args, { cwd: at.path, stdio: "pipe" });
  openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "key.pem");
  const extensions = "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:TRUE\n";
  writeFileSync(file("ext"), extensions);
  openssl("req", "-new", "-key", "key.pem", "-subj", `/CN=${name}`, "-out", "csr.pem");
  writeFileSync(file("ca.pem"), issuer?.cert ?? "");
  writeFileSync(file("ca-key.pem"), issuer?.key ?? readFileSync(file("key.pem")));
  writeFileSync(file("index"), "");
  writeFileSync(
    file("ca.cnf"),
    "[ca]\ndefault_ca=d\n[d]\ndatabase=index\nrand_serial=yes\ndefault_md=sha256\npolicy=p\nnew_certs_dir=.\n[p]\ncommonName=supplied\n",
  );
  const period =
    from || to ? ["-startdate", from ?? "20200101000000Z", "-enddate", to ?? "20400101000000Z"] : ["-days", "1"];
  const signer = issuer ? ["-cert", "ca.pem", "-keyfile", "ca-key.pem"] : ["-selfsign", "-keyfile", "key.pem"];
  openssl(
    "ca",
    "-batch",
    "-notext",
    "-config",
    "ca.cnf",
    ...signer,
    "-extfile",
    "ext",
    ...period,
    "-in",
    "csr.pem",
    "-out",
    "cert.pem",
  );
  return { cert: readFileSync(file("cert.pem"), "utf8"), key: readFileSync(file("key.pem"), "utf8") };
}

/** Puts a pair in place the way renewals do: new files are renamed over the old ones. */
export function place(at: string, { cert, key }: Pair): { tlsCert: string; tlsKey: string } {
  return { tlsCert: put(at, "cert.pem", cert), tlsKey: put(at, "key.pem", key) };
}

/** Puts a file in place by a rename; gives its path. */
export function put(at: string, name: string, text: string): string {
  const path = join(at, name);
  writeFileSync(`${path}.new`, text, { mode: 0o600 });
  renameSync(`${path}.new`, path);
  return path;
}
