/** The protos with their comments, which generated code does not have. */
import { execFileSync } from "node:child_process";
import {
  createFileRegistry,
  type DescEnum,
  type DescEnumValue,
  type DescField,
  type DescFile,
  type DescMessage,
  type DescMethod,
  type DescOneof,
  type DescService,
  type FileRegistry,
  fromBinary,
} from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";

const maxImageBytes = 64 * 1_048_576;

type Commented = DescService | DescMethod | DescMessage | DescField | DescEnum | DescEnumValue | DescOneof;

/** Reads all protos of the workspace as `buf` sees them. */
export function readImage(): FileRegistry {
  const bytes = execFileSync("buf", ["build", "--as-file-descriptor-set", "-o", "-#format=binpb"], {
    maxBuffer: maxImageBytes,
  });
  return createFileRegistry(fromBinary(FileDescriptorSetSchema, bytes));
}

/** The comment before a declaration, a paragraph a line; items of lists keep their own lines. Empty: there is none. */
export function commentOf(desc: Commented): string {
  const path = pathOf(desc).join();
  const location = fileOf(desc).proto.sourceCodeInfo?.location;
  return flowing(location?.find((one) => one.path.join() === path)?.leadingComments ?? "");
}

/** The comment of the package, which one of its files has. */
export const packageComment = (files: Iterable<DescFile>, name: string): string =>
  [...files]
    .filter(({ proto }) => proto.package === name)
    .flatMap(({ proto }) => proto.sourceCodeInfo?.location ?? [])
    .filter(({ path }) => path.join() === "2")
    .map(({ leadingComments }) => flowing(leadingComments))
    .join("");

const fileOf = (desc: Commented): DescFile =>
  desc.kind === "rpc" || desc.kind === "field" || desc.kind === "enum_value" || desc.kind === "oneof"
    ? desc.parent.file
    : desc.file;

/** Where a declaration is in its file, by the numbers of descriptor.proto. */
function pathOf(desc: Commented): readonly number[] {
  switch (desc.kind) {
    case "service":
      return [6, desc.file.proto.service.indexOf(desc.proto)];
    case "rpc":
      return [...pathOf(desc.parent), 2, desc.parent.proto.method.indexOf(desc.proto)];
    case "message":
      return desc.parent
        ? [...pathOf(desc.parent), 3, desc.parent.proto.nestedType.indexOf(desc.proto)]
        : [4, desc.file.proto.messageType.indexOf(desc.proto)];
    case "field":
      return [...pathOf(desc.parent), 2, desc.parent.proto.field.indexOf(desc.proto)];
    case "oneof":
      return [...pathOf(desc.parent), 8, desc.parent.proto.oneofDecl.indexOf(desc.proto)];
    case "enum":
      return desc.parent
        ? [...pathOf(desc.parent), 4, desc.parent.proto.enumType.indexOf(desc.proto)]
        : [5, desc.file.proto.enumType.indexOf(desc.proto)];
    case "enum_value":
      return [...pathOf(desc.parent), 2, desc.parent.proto.value.indexOf(desc.proto)];
  }
}

function flowing(comment: string): string {
  return comment
    .split("\n")
    .map((line) => line.replace(/^ /, "").trimEnd())
    .reduce((text, line) => {
      if (text === "" || text.endsWith("\n")) return line === "" ? text : text + line;
      if (line === "") return `${text}\n\n`;
      return /^([-*•] |\s)/.test(line) ? `${text}\n${line}` : `${text} ${line}`;
    }, "")
    .trim();
}
