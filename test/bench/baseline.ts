/**
 * What there is to compare with, in a process of its own: `/bare` answers as many bytes as asked for from node:http and does nothing else;
 * `/autocommit` does the statements of UpdateAgent with plain better-sqlite3, each request in its own transaction with its own fsync; `/set` those of SetEntry, but
 * for the agent and its policies, and `/get` reads what that wrote.
 * Arguments: the data file, and the files of the schema.
 */
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import Database from "better-sqlite3";

const [, , file = "", ...schema] = process.argv;
const db = new Database(file);
db.pragma("journal_mode = wal");
db.pragma("synchronous = full");
db.pragma("wal_autocheckpoint = 16000");
for (const part of schema) db.exec(readFileSync(part, "utf8"));
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

db.exec(`
  insert into memory (org_id, memory_id, agent_id, head, compacted, entries, bytes, public_entries, contributors, create_ms, update_ms)
  select org_id, agent_id, agent_id, 0, 0, 1, 0, 0, 1, 0, 0 from agent`);
const readEntry = db.prepare<[string], { head: number; create_revision: number | null }>(`
  select m.head, e.create_revision from memory m
    left join memory_entry e on e.org_id = m.org_id and e.memory_id = m.memory_id and e.namespace = 'default' and e.key = 'bench'
  where m.org_id = 'org' and m.memory_id = ?`);
const moveHead = db.prepare(
  "update memory set head = ?, bytes = ?, update_ms = ? where org_id = 'org' and memory_id = ? and head = ?",
);
const putEntry = db.prepare(`
  insert into memory_entry (org_id, memory_id, namespace, key, revision, create_revision, size_bytes, create_ms, update_ms, public, value)
  values ('org', ?, 'default', 'bench', ?, ?, ?, ?, ?, 0, ?)
  on conflict (org_id, memory_id, namespace, key) do update set revision = excluded.revision, size_bytes = excluded.size_bytes,
    update_ms = excluded.update_ms, value = excluded.value`);
const logEntry = db.prepare(`
  insert into memory_change (org_id, memory_id, revision, namespace, key, kind, time_ms, public, was_public, body)
  values ('org', ?, ?, 'default', 'bench', 1, ?, 0, 0, ?)`);
const getEntry = db
  .prepare<[string], Buffer>(
    "select value from memory_entry where org_id = 'org' and memory_id = ? and namespace = 'default' and key = 'bench'",
  )
  .pluck();

const setEntry = db.transaction((agentId: string, value: Buffer): number => {
  const now = Date.now();
  const { head, create_revision: created } = readEntry.get(agentId)!;
  moveHead.run(head + 1, value.length, now, agentId, head);
  putEntry.run(agentId, head + 1, created ?? head + 1, value.length, now, now, value);
  logEntry.run(agentId, head + 1, now, value);
  return head + 1;
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
    else if (path === "set") answer = Buffer.from(String(setEntry(argument, Buffer.concat(chunks))));
    else if (path === "get") answer = (getEntry.get(argument) as Buffer | undefined) ?? Buffer.alloc(0);
    else if (path === "written") answer = Buffer.from(String(db.prepare("select sum(head) from memory").pluck().get()));
    else if (path === "acknowledged")
      answer = Buffer.from(String(db.prepare("select count(*) from audit_event").pluck().get()));
    else answer = fill(argument);
    response.writeHead(200, { "content-type": "application/proto", "content-length": answer.length }).end(answer);
  });
});
server.listen(0, "127.0.0.1", () =>
  console.log(`listening on http://127.0.0.1:${(server.address() as AddressInfo).port}`),
);
