"""The messages of the Open Inference Protocol v2 over gRPC, made from the protocol's field numbers.

They are in a pool of their own: other libraries of a process have messages of the same names.
"""

from __future__ import annotations

import re
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"

# A field is `name:type=number`; `[type]` is repeated, `{type}` a map from text.
FIELDS = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live:bool=1",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready:bool=1",
    "ModelReadyRequest": "name:string=1 version:string=2",
    "ModelReadyResponse": "ready:bool=1",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "name:string=1 version:string=2 extensions:[string]=3",
    "ModelMetadataRequest": "name:string=1 version:string=2",
    "ModelMetadataResponse": "name:string=1 versions:[string]=2 platform:string=3 inputs:[TensorMetadata]=4"
    " outputs:[TensorMetadata]=5",
    "TensorMetadata": "name:string=1 datatype:string=2 shape:[int64]=3",
    "ModelInferRequest": "model_name:string=1 model_version:string=2 id:string=3 parameters:{InferParameter}=4"
    " inputs:[InferInputTensor]=5 outputs:[InferRequestedOutputTensor]=6 raw_input_contents:[bytes]=7",
    "InferInputTensor": "name:string=1 datatype:string=2 shape:[int64]=3 parameters:{InferParameter}=4"
    " contents:InferTensorContents=5",
    "InferRequestedOutputTensor": "name:string=1 parameters:{InferParameter}=2",
    "InferParameter": "bool_param:bool=1 int64_param:int64=2 string_param:string=3 double_param:double=4"
    " uint64_param:uint64=5",
    "InferTensorContents": "bool_contents:[bool]=1 int_contents:[int32]=2 int64_contents:[int64]=3"
    " uint_contents:[uint32]=4 uint64_contents:[uint64]=5 fp32_contents:[float]=6 fp64_contents:[double]=7"
    " bytes_contents:[bytes]=8",
    "ModelInferResponse": "model_name:string=1 model_version:string=2 id:string=3 parameters:{InferParameter}=4"
    " outputs:[InferOutputTensor]=5 raw_output_contents:[bytes]=6",
    "InferOutputTensor": "name:string=1 datatype:string=2 shape:[int64]=3 parameters:{InferParameter}=4"
    " contents:InferTensorContents=5",
    "RepositoryIndexRequest": "repository_name:string=1 ready:bool=2",
    "RepositoryIndexResponse": "models:[ModelIndex]=1",
    "ModelIndex": "name:string=1 version:string=2 state:string=3 reason:string=4",
    "RepositoryModelLoadRequest": "repository_name:string=1 model_name:string=2"
    " parameters:{ModelRepositoryParameter}=3",
    "RepositoryModelLoadResponse": "",
    "RepositoryModelUnloadRequest": "repository_name:string=1 model_name:string=2"
    " parameters:{ModelRepositoryParameter}=3",
    "RepositoryModelUnloadResponse": "",
    "ModelRepositoryParameter": "bool_param:bool=1 int64_param:int64=2 string_param:string=3 bytes_param:bytes=4",
}  # fmt: skip
ONE_OF = {"InferParameter", "ModelRepositoryParameter"}  # at most one of their fields is given
FIELD = re.compile(r"(\w+):([\[{]?)(\w+)[\]}]?=(\d+)")

_Field = descriptor_pb2.FieldDescriptorProto
SCALARS = {
    "bool": _Field.TYPE_BOOL, "int32": _Field.TYPE_INT32, "int64": _Field.TYPE_INT64, "uint32": _Field.TYPE_UINT32,
    "uint64": _Field.TYPE_UINT64, "float": _Field.TYPE_FLOAT, "double": _Field.TYPE_DOUBLE,
    "string": _Field.TYPE_STRING, "bytes": _Field.TYPE_BYTES,
}  # fmt: skip


def _made() -> dict[str, Any]:
    """Classes by name."""
    file = descriptor_pb2.FileDescriptorProto(name="open_inference.proto", package=PACKAGE, syntax="proto3")
    for name, fields in FIELDS.items():
        message = file.message_type.add(name=name)
        if name in ONE_OF:
            message.oneof_decl.add(name="parameter_choice")
        for found in FIELD.finditer(fields):
            field = _add(message, found[1], found[3], int(found[4]), repeated=bool(found[2]))
            if found[2] == "{":
                field.type_name = f".{PACKAGE}.{_entry(message, found[1], found[3])}"
            elif name in ONE_OF:
                field.oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    classes = message_factory.GetMessageClassesForFiles([file.name], pool)
    return {name.removeprefix(f"{PACKAGE}."): made for name, made in classes.items()}


def _add(message: Any, name: str, kind: str, number: int, repeated: bool = False) -> Any:
    label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
    field = message.field.add(name=name, number=number, label=label)
    if kind in SCALARS:
        field.type = SCALARS[kind]
    else:
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
    return field


def _entry(message: Any, field: str, kind: str) -> str:
    """A map is a repeated message of this kind."""
    entry = message.nested_type.add(name=f"{field.title()}Entry")
    entry.options.map_entry = True
    _add(entry, "key", "string", 1)
    _add(entry, "value", kind, 2)
    return f"{message.name}.{entry.name}"


MESSAGES = _made()
