// gRPC server reflection, v1 and v1alpha, from the descriptors in the generated code.
// See https://github.com/grpc/grpc/blob/master/doc/server-reflection.md

import { type DescExtension, type DescFile, type DescService, toBinary } from "@bufbuild/protobuf";
import { nestedTypes } from "@bufbuild/protobuf/reflect";
import { FileDescriptorProtoSchema } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, type ConnectRouter } from "@connectrpc/connect";
import { ServerReflection as V1 } from "../../gen/grpc/reflection/v1/reflection_pb.ts";
import { ServerReflection as V1Alpha } from "../../gen/grpc/reflection/v1alpha/reflection_pb.ts";

/** A question, the same in v1 and v1alpha. */
type Question =
  | { case: "listServices" | "fileByFilename" | "fileContainingSymbol" | "allExtensionNumbersOfType"; value: string }
  | { case: "fileContainingExtension"; value: { containingType: string; extensionNumber: number } }
  | { case: undefined; value?: undefined };

/** Questions a stream may ask; one more ends it with `resource_exhausted`. A curious client asks a few hundred. */
const maxQuestions = 1_000;

/**
 * Serves reflection for the services, itself, and everything their files import. `extraFiles` are files that no service needs but
 * clients may ask for, such as those that define options.
 */
export function reflectionRoutes(
  services: readonly DescService[],
  extraFiles: readonly DescFile[] = [],
): (router: ConnectRouter) => void {
  const listed = [...services, V1, V1Alpha];
  const index = indexFiles([...listed.map((service) => service.file), ...extraFiles]);
  const bytesOf = closures();
  const names = listed.map((service) => ({ name: service.typeName }));

  const file = (found: DescFile | undefined) =>
    found === undefined
      ? failure(Code.NotFound, "not found")
      : ({ case: "fileDescriptorResponse", value: { fileDescriptorProto: bytesOf(found) } } as const);

  const answer = (question: Question) => {
    switch (question.case) {
      case "listServices":
        return { case: "listServicesResponse", value: { service: names } } as const;
      case "fileByFilename":
        return file(index.files.get(question.value));
      case "fileContainingSymbol":
        return file(index.symbols.get(question.value.replace(/^\./, "")));
      case "fileContainingExtension": {
        const { containingType, extensionNumber } = question.value;
        return file(index.extensions.get(containingType)?.get(extensionNumber)?.file);
      }
      case "allExtensionNumbersOfType": {
        const numbers = [...(index.extensions.get(question.value)?.keys() ?? [])];
        if (numbers.length === 0 && !index.symbols.has(question.value)) return failure(Code.NotFound, "not found");
        const value = { baseTypeName: question.value, extensionNumber: numbers };
        return { case: "allExtensionNumbersResponse", value } as const;
      }
      default:
        return failure(Code.InvalidArgument, "nothing was asked");
    }
  };

  async function* serverReflectionInfo<Request extends { host: string; messageRequest: Question }>(
    requests: AsyncIterable<Request>,
  ) {
    let left = maxQuestions;
    for await (const request of requests) {
      left -= 1;
      if (left < 0) throw new ConnectError("too many questions in one stream", Code.ResourceExhausted);
      const { host, messageRequest } = request;
      yield { validHost: host, originalRequest: { host, messageRequest }, messageResponse: answer(messageRequest) };
    }
  }
  return (router) => {
    router.service(V1, { serverReflectionInfo });
    router.service(V1Alpha, { serverReflectionInfo });
  };
}

function failure(code: Code, errorMessage: string) {
  return { case: "errorResponse", value: { errorCode: code as number, errorMessage } } as const;
}

type Index = {
  files: Map<string, DescFile>;
  symbols: Map<string, DescFile>;
  extensions: Map<string, Map<number, DescExtension>>;
};

/** Everything that can be asked for by name, in the files and all they import. */
function indexFiles(roots: readonly DescFile[]): Index {
  const index: Index = { files: new Map(), symbols: new Map(), extensions: new Map() };
  const add = (file: DescFile) => {
    const name = `${file.name}.proto`;
    if (index.files.has(name)) return;
    index.files.set(name, file);
    for (const type of nestedTypes(file)) {
      for (const symbol of symbolsOf(type)) index.symbols.set(symbol, file);
      if (type.kind !== "extension") continue;
      const { typeName } = type.extendee;
      index.extensions.set(typeName, (index.extensions.get(typeName) ?? new Map()).set(type.number, type));
    }
    for (const dependency of file.dependencies) add(dependency);
  };
  for (const root of roots) add(root);
  return index;
}

type NestedType = ReturnType<typeof nestedTypes> extends Iterable<infer Type> ? Type : never;

function symbolsOf(type: NestedType): string[] {
  const inside = (members: readonly { name: string }[]) => members.map(({ name }) => `${type.typeName}.${name}`);
  switch (type.kind) {
    case "message":
      return [type.typeName, ...inside(type.fields), ...inside(type.oneofs)];
    case "service":
      return [type.typeName, ...inside(type.methods)];
    case "enum": {
      // Values are siblings of their enum, as in C++.
      const scope = type.typeName.slice(0, type.typeName.lastIndexOf(".") + 1);
      return [type.typeName, ...type.values.map(({ name }) => `${scope}${name}`)];
    }
    default:
      return [type.typeName];
  }
}

/** A file and all it imports as bytes, each file once. Kept, because descriptors never change while the server runs. */
function closures(): (file: DescFile) => Uint8Array[] {
  const encoded = new Map<DescFile, Uint8Array>();
  const whole = new Map<DescFile, Uint8Array[]>();
  const encode = (file: DescFile): Uint8Array => {
    const bytes = encoded.get(file) ?? toBinary(FileDescriptorProtoSchema, file.proto);
    encoded.set(file, bytes);
    return bytes;
  };
  const collect = (file: DescFile, into: Set<DescFile>): Set<DescFile> => {
    if (into.has(file)) return into;
    into.add(file);
    for (const dependency of file.dependencies) collect(dependency, into);
    return into;
  };
  return (file) => {
    const bytes = whole.get(file) ?? [...collect(file, new Set())].map(encode);
    whole.set(file, bytes);
    return bytes;
  };
}
