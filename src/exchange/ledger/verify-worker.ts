/** The thread that reads the books in one snapshot and adds them up, so that the server's own goes on serving. */
import { parentPort, workerData } from "node:worker_threads";
import { openSource, type SourcePlace } from "../../ops/backup-source.ts";
import type { Proof } from "./proof.ts";
import { proveSource } from "./prove-source.ts";

/** What it tells: how far it is, then what it found. */
export type VerifyNews =
  | { readonly kind: "progress"; readonly rows: number }
  | { readonly kind: "done"; readonly proof: Proof };

const tellMs = 250;
const port = parentPort!;
const tell = (news: VerifyNews): void => port.postMessage(news);

async function work(place: SourcePlace): Promise<void> {
  let toldMs = performance.now();
  const source = await openSource(place);
  try {
    const proof = await proveSource(source, (rows) => {
      if (performance.now() < toldMs + tellMs) return;
      toldMs = performance.now();
      tell({ kind: "progress", rows });
    });
    tell({ kind: "done", proof });
  } finally {
    await source.close();
  }
}

await work(workerData as SourcePlace);
