/** Whether the server speaks the schema that this client was generated from, by server reflection. */
import { globSync } from "node:fs";
import { join } from "node:path";
import { create, createFileRegistry, type DescFile, fromBinary } from "@bufbuild/protobuf";
import { nestedTypes } from "@bufbuild/protobuf/reflect";
import { type FileDescriptorProto, FileDescriptorProtoSchema, FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { ServerReflection } from "../../gen/grpc/reflection/v1/reflection_pb.ts";
import type { Clients } from "./connect.ts";
import type { Finding } from "./doctor.ts";
import { explain } from "./problem.ts";

const shown = 3;
const maxServices = 500;

/** Compares services, methods, fields and enum values with what the server's reflection tells. */
export async function checkSchema(clients: Clients, timeoutMs: number): Promise<Finding> {
  const check = "schema";
  try {
    const ours = symbolsOf(await generatedFiles());
    const theirs = symbolsOf([...(await reflectedFiles(clients, timeoutMs))]);
    const missing = [...ours].filter((symbol) => !theirs.has(symbol));
    const extra = [...theirs].filter((symbol) => !ours.has(symbol));
    if (missing.length > 0) {
      return {
        check,
        state: "warn",
        detail: `the server lacks ${list(missing)}`,
        fix: "update the server, or use the client of its version",
      };
    }
    if (extra.length > 0) {
      return {
        check,
        state: "warn",
        detail: `this client lacks ${list(extra)}`,
        fix: "update this client to use what the server has",
      };
    }
    return { check, state: "ok", detail: `all ${ours.size} names of the schema agree` };
  } catch (error) {
    const { message } = explain(error, "the server");
    return {
      check,
      state: "fail",
      detail: `reflection failed: ${message}`,
      fix: "update the server: every Moltwire server has reflection",
    };
  }
}

const list = (names: readonly string[]): string =>
  names
    .slice(0, shown)
    .map((name) => name.replace(/ .*$/, ""))
    .join(", ") + (names.length > shown ? ` and ${names.length - shown} more` : "");

/** The files of the schema with services of servers, as this client has them. What agents implement no server serves. */
async function generatedFiles(): Promise<DescFile[]> {
  const root = join(import.meta.dirname, "../../gen");
  const modules = await Promise.all(
    globSync("moltwire/**/*_service_pb.{ts,js}", { cwd: root, exclude: ["moltwire/agent/**"] }).map(
      (path): Promise<Record<string, unknown>> => import(join(root, path)),
    ),
  );
  return modules.flatMap((module) =>
    Object.entries(module).flatMap(([name, value]) => (name.startsWith("file_") ? [value as DescFile] : [])),
  );
}

/** The files that the server's moltwire services need. */
async function reflectedFiles(clients: Clients, timeoutMs: number): Promise<Iterable<DescFile>> {
  const reflection = clients(ServerReflection);
  const ask = async function* (questions: Iterable<{ case: "listServices" | "fileContainingSymbol"; value: string }>) {
    for (const messageRequest of questions) yield { messageRequest };
  };
  const names: string[] = [];
  for await (const { messageResponse } of reflection.serverReflectionInfo(ask([{ case: "listServices", value: "" }]), {
    timeoutMs,
  })) {
    if (messageResponse.case === "listServicesResponse")
      names.push(...messageResponse.value.service.map(({ name }) => name));
  }
  const wanted = names.filter((name) => name.startsWith("moltwire.")).slice(0, maxServices);
  const files = new Map<string, FileDescriptorProto>();
  const questions = wanted.map((value) => ({ case: "fileContainingSymbol" as const, value }));
  for await (const { messageResponse } of reflection.serverReflectionInfo(ask(questions), { timeoutMs })) {
    if (messageResponse.case !== "fileDescriptorResponse") continue;
    for (const bytes of messageResponse.value.fileDescriptorProto) {
      const file = fromBinary(FileDescriptorProtoSchema, bytes);
      files.set(file.name, file);
    }
  }
  return createFileRegistry(create(FileDescriptorSetSchema, { file: inOrder(files) })).files;
}

/** The files with every file after those it imports, as a registry wants them. */
function inOrder(files: ReadonlyMap<string, FileDescriptorProto>): FileDescriptorProto[] {
  const ordered = new Set<FileDescriptorProto>();
  const add = (file: FileDescriptorProto | undefined): void => {
    if (!file || ordered.has(file)) return;
    for (const name of file.dependency) add(files.get(name));
    ordered.add(file);
  };
  for (const file of files.values()) add(file);
  return [...ordered];
}

/** The names in the moltwire files and what they import of each other: a field with its number and type. */
function symbolsOf(files: readonly DescFile[]): Set<string> {
  const names = new Set<string>();
  const seen = new Set<string>();
  const add = (file: DescFile): void => {
    if (seen.has(file.name) || !file.name.startsWith("moltwire/")) return;
    seen.add(file.name);
    file.dependencies.forEach(add);
    for (const type of nestedTypes(file)) {
      if (type.kind === "service") for (const method of type.methods) names.add(`${type.typeName}/${method.name}`);
      if (type.kind === "message")
        for (const field of type.fields)
          names.add(`${type.typeName}.${field.name} (${field.number}, ${field.proto.type})`);
      if (type.kind === "enum") for (const value of type.values) names.add(`${value.name} (${value.number})`);
    }
  };
  files.forEach(add);
  return names;
}
