"""A plugin of buf: messages and stubs, as the compiler inside grpcio-tools writes them. That package has no plugin of its own to be called."""

import sys
import tempfile
from pathlib import Path

from google.protobuf.compiler.plugin_pb2 import CodeGeneratorRequest, CodeGeneratorResponse
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

request = CodeGeneratorRequest.FromString(sys.stdin.buffer.read())
with tempfile.TemporaryDirectory() as folder:
    descriptors = Path(folder) / "descriptors"
    out = Path(folder) / "out"
    out.mkdir()
    descriptors.write_bytes(FileDescriptorSet(file=request.proto_file).SerializeToString())
    arguments = [f"--descriptor_set_in={descriptors}", f"--python_out={out}", f"--grpc_python_out={out}"]
    if protoc.main(["protoc", *arguments, *request.file_to_generate]) != 0:
        sys.exit("the protos could not be compiled")
    response = CodeGeneratorResponse(supported_features=CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL)
    for path in sorted(out.rglob("*.py")):
        response.file.add(name=str(path.relative_to(out)), content=path.read_text())
sys.stdout.buffer.write(response.SerializeToString())
