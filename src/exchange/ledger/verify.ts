/** The proof of the books: made in a thread of its own. */
import { on } from "node:events";
import { extname } from "node:path";
import { Worker } from "node:worker_threads";
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { ServiceImpl } from "@connectrpc/connect";
import type { LedgerProofSchema } from "../../../gen/moltwire/ops/v1/ledger_pb.ts";
import type {
  MaintenanceService,
  VerifyLedgerResponseSchema,
} from "../../../gen/moltwire/ops/v1/maintenance_service_pb.ts";
import type { App } from "../../app.ts";
import { Fault } from "../../errors.ts";
import type { SourcePlace } from "../../ops/backup-source.ts";
import { watched } from "../../rpc/feed.ts";
import { mostHeld } from "./account.ts";
import type { Proof } from "./proof.ts";
import type { VerifyNews } from "./verify-worker.ts";

type Message = MessageInitShape<typeof VerifyLedgerResponseSchema>;

const retryMs = 5_000;

/** The ledger's part of MaintenanceService. */
export function verifyHandler(app: App): Pick<ServiceImpl<typeof MaintenanceService>, "verifyLedger"> {
  let isBusy = false;
  return {
    async *verifyLedger(_request, context) {
      if (isBusy)
        throw new Fault("OVERLOADED", "this server is at another proof: one at a time", {}, { retryAfterMs: retryMs });
      isBusy = true;
      try {
        yield* watched(app, context, (signal) => verify(app, signal));
      } finally {
        isBusy = false;
      }
    },
  };
}

async function* verify(app: Pick<App, "config" | "db">, signal: AbortSignal): AsyncGenerator<Message> {
  signal.throwIfAborted();
  const { file } = app.db.load();
  const place: SourcePlace = file ? { sqlite: file } : { postgres: app.config.databaseUrl! };
  const worker = new Worker(new URL(`./verify-worker${extname(import.meta.filename)}`, import.meta.url), {
    workerData: place,
  });
  worker.on("error", () => {}); // it is heard below, and after that there is nothing left to hear
  try {
    for await (const [news] of on(worker, "message", { signal, close: ["exit"] }) as AsyncIterable<[VerifyNews]>) {
      if (news.kind === "progress") {
        yield { event: { case: "progress", value: { rows: BigInt(news.rows) } } };
        continue;
      }
      yield { event: { case: "proof", value: toMessage(news.proof) } };
      return;
    }
    throw new Error("the thread of the proof ended without a word");
  } catch (error) {
    signal.throwIfAborted();
    throw error;
  } finally {
    await worker.terminate();
  }
}

/** Books that are wrong may come to anything. */
const within = (micros: bigint): bigint => (micros > mostHeld ? mostHeld : micros < -mostHeld ? -mostHeld : micros);

const toMessage = (proof: Proof): MessageInitShape<typeof LedgerProofSchema> => ({
  ok: proof.faultCount === 0,
  accounts: BigInt(proof.accounts),
  transfers: BigInt(proof.transfers),
  liveReserves: BigInt(proof.liveReserves),
  issuedMicros: within(proof.issued),
  reservedMicros: within(proof.reserved),
  sumMicros: within(proof.sum),
  faults: proof.faults.map(({ orgId, subjectId, description }) => ({ orgId, subjectId, description })),
  faultCount: BigInt(proof.faultCount),
});
