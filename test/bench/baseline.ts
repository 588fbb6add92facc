/**
 * What there is to compare with, in a process of its own: `/bare` answers as many bytes as asked for from node:http and does nothing else;
 * `/autocommit` does the statements of UpdateAgent with plain better-sqlite3, each request in its own transaction with its own fsync.
 * Arguments: the data file, and the file of the schema.
 */
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import Database from "better-sqlite3";

const [, , file = "", schema = ""] = process.argv;
const db = new Database(file);
db.pragma("journal_mode = wal");
db.pragma("synchronous = full");
db.pragma("wal_autocheckpoint = 16000");
db.exec(readFileSync(schema, "utf8"));
db.exec(`
  with recursive n (i) as (select 0 union all select i + 1 from n where i < 63)
  insert into agent select 'org', 'agt_' || i, 'agent-' || i, '', 2, '[]', '[]', null, '{}', 0, 0, 0, 1 from n`);

const read = db.prepare<[string], { revision: number }>(
  "select revision from agent where org_id = 'org' and agent_id = ?",
);
const update = db.prepare(
  "update agent set description = ?, update_ms = ?, revision = revision + 1 where org_id = 'org' and agent_id = ?",
);
const forget = db.prepare("delete from agent_capability where org_id = 'org' and agent_id = ?");
const audit = db.prepare(`
  insert into audit_event (org_id, xid, audit_id, time_ms, method, role, key_id, agent_id, resource, request_sha256, trace_id)
  values ('org', 0, ?, ?, 'moltwire.bus.v1.AgentService/UpdateAgent', 3, 'key', '', ?, ?, ?)`);
const sixtyFour = "0".repeat(64);

const command = db.transaction((agentId: string, description: string): number => {
  const now = Date.now();
  const { revision } = read.get(agentId)!;
  update.run(description, now, agentId);
  forget.run(agentId);
  audit.run(`aud_${randomUUID()}`, now, JSON.stringify({ agent_id: agentId }), sixtyFour, sixtyFour.slice(32));
  return revision + 1;
}).immediate;

const answers = new Map<string, Buffer>();
const fill = (length: string): Buffer => {
  const found = answers.get(length) ?? Buffer.alloc(Number(length), "x");
  answers.set(length, found);
  return found;
};

const server = createServer((request, response) => {
  const chunks: Buffer[] = [];
  request.on("data", (chunk: Buffer) => chunks.push(chunk));
  request.on("end", () => {
    const [, path, argument = ""] = (request.url ?? "").split("/");
    let answer: Buffer;
    if (path === "autocommit")
      answer = Buffer.from(String(command(argument, Buffer.concat(chunks).toString("latin1"))));
    else if (path === "acknowledged")
      answer = Buffer.from(String(db.prepare("select count(*) from audit_event").pluck().get()));
    else answer = fill(argument);
    response.writeHead(200, { "content-type": "application/proto", "content-length": answer.length }).end(answer);
  });
});
server.listen(0, "127.0.0.1", () =>
  console.log(`listening on http://127.0.0.1:${(server.address() as AddressInfo).port}`),
);
