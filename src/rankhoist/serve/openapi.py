"""What the server answers, as an OpenAPI document: made of the models that it serves, so it is never out of date."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from rankhoist_client.columns import DATATYPES
from rankhoist_client.refusal import REASONS
from rankhoist_client.v2 import TEXT as TEXT_TYPE

from rankhoist.runtime.versions import versions
from rankhoist.serve.example import infer_example, items_example, rank_example
from rankhoist.serve.features import Feature
from rankhoist.serve.inputs import OFFSETS, Signature
from rankhoist.serve.model import Output, ServedModel

VERSION = "3.1.0"
JSON = "application/json"
Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
OF_SCORES = (400, 404, 408, 409, 413, 415, 429, 500, 503)  # refusals
SIZES: Schema = {"type": "array", "items": {"type": "integer", "minimum": -1}}


def openapi(models: Iterable[ServedModel], admin: bool = False, put_items: bool = False) -> dict[str, Any]:
    """The document; `admin`: with the routes that load and unload models, `put_items`: that put items."""
    paths = _of_the_server()
    for model in models:
        paths |= _of_a_model(model) | (_load(model.name) if admin else {})
        if put_items and model.items is not None and model.items.built:
            paths |= _items(model)
    about = "Scores of candidates by hoisted ranking models: context work runs once per request."
    return {
        "openapi": VERSION,
        "info": {"title": "rankhoist", "version": versions()["rankhoist"], "description": about},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": _schemas(), "responses": {str(s): _refusal(s) for s in set(REASONS.values())}},
    }


# -- routes


def _of_the_server() -> dict[str, Any]:
    live, ready = _object(live={"type": "boolean"}), _object(ready={"type": "boolean"})
    metrics = {"description": "Prometheus' text format", "content": {"text/plain": {"schema": TEXT}}}
    return {
        "/v2/health/live": _get("live", live),
        "/healthz": _get("the same, as Kubernetes calls it", live),
        "/v2/health/ready": _get("ready to take requests", ready, 503),
        "/readyz": _get("the same, as Kubernetes calls it", ready, 503),
        "/v2": _get("what the server is", _object(name=TEXT, version=TEXT, extensions={"type": "array"})),
        "/v2/repository/index": _index(),
        "/metrics": {"get": {"summary": "what is measured", "responses": {"200": metrics}}},
    }


def _index() -> dict[str, Any]:
    """By either method, as clients of Triton ask by the second."""
    found: Schema = {"type": "array", "items": _object(name=TEXT, state={"enum": ["READY", "UNAVAILABLE"]})}
    post = _operation("models and versions, perhaps only those that are ready", found, 400, 408, 413, 415)
    asked = {"type": "object", "properties": {"ready": {"type": "boolean"}}}
    post |= {"requestBody": _body(asked, {"ready": True}) | {"required": False}}
    return {**_get("models and versions", found), "post": post}


def _of_a_model(model: ServedModel) -> dict[str, Any]:
    infer = _operation("the Open Inference Protocol v2", _ref("InferResponse"), *OF_SCORES)
    infer |= {"tags": [model.name], "requestBody": _body(_ref("InferRequest"), infer_example(model))}
    return {
        **_ranked(model),
        f"/v2/models/{model.name}/infer": {"post": infer},
        f"/v2/models/{model.name}": _get("features and outputs", _ref("Metadata"), tag=model.name),
        f"/v2/models/{model.name}/ready": _get("ready", _object(ready={"type": "boolean"}), 503, tag=model.name),
    }


def _ranked(model: ServedModel) -> dict[str, Any]:
    """No route of a model whose outputs put nothing in an order."""
    example = rank_example(model)
    if example is None:
        return {}
    rank = _operation("scores of the candidates of one request, and their order", _ranking(model), *OF_SCORES)
    rank |= {"tags": [model.name], "requestBody": _body(_rank(model), example)}
    return {f"/v1/models/{model.name}/rank": {"post": rank}}


def _items(model: ServedModel) -> dict[str, Any]:
    """Items into its catalogue."""
    assert model.items is not None, "it has a catalogue"
    features = Signature.of_items(model.hoisted, model.items.feature).features.values()
    put = _operation(
        "items that are new, or in the place of those with their ids",
        _object(model={"const": model.name}, items={"type": "integer"}, edition={"type": "integer", "minimum": 1}),
        *OF_SCORES,
    )  # fmt: skip
    body = _object(items=_rows({f.name: _feature(f) for f in features}))
    put |= {"tags": [model.name], "requestBody": _body(body, items_example(model))}
    return {f"/v1/models/{model.name}/items": {"put": put}}


def _load(name: str) -> dict[str, Any]:
    load = _operation("serve the newest artifact", _object(name=TEXT, version=TEXT), 429, 500)
    unload = _operation("serve it no more", _object(name=TEXT), 429)
    operations = {"load": load, "unload": unload}
    return {f"/v2/repository/models/{name}/{o}": {"post": made | {"tags": [name]}} for o, made in operations.items()}


def _get(summary: str, schema: Schema, *refusals: int, tag: str | None = None) -> dict[str, Any]:
    return {"get": _operation(summary, schema, *refusals) | ({} if tag is None else {"tags": [tag]})}


def _operation(summary: str, schema: Schema, *refusals: int) -> dict[str, Any]:
    good = {"description": "done", "content": {JSON: {"schema": schema}}}
    return {"summary": summary, "responses": {"200": good, **{str(s): _response(s) for s in refusals}}}


def _body(schema: Schema, example: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {JSON: {"schema": schema, "example": example}}}


def _response(status: int) -> Schema:
    return {"$ref": f"#/components/responses/{status}"}


def _refusal(status: int) -> dict[str, Any]:
    reasons = ", ".join(reason for reason, own in REASONS.items() if own == status)
    description = f"{HTTPStatus(status).phrase}: {reasons}"
    return {"description": description, "content": {JSON: {"schema": _ref("Refusal")}}}


# -- what goes in and out


def _rank(model: ServedModel) -> Schema:
    sides: dict[str, dict[str, Schema]] = {"context": {}, "candidate": {}}
    for feature in model.signature.features.values():
        sides[feature.side][feature.name] = _feature(feature)
    options = {
        "top_k": {"type": "integer", "minimum": 1},
        "output": {"enum": [output.name for output in model.outputs if output.orders]},
        "context_key": TEXT | {"minLength": 1, "maxLength": 256},
        "timeout_ms": {"type": "number", "exclusiveMinimum": 0},
    }
    if model.items is not None:
        options["unknown_ids"] = {"enum": ["refuse", "skip"], "description": "skipped items have null as their scores"}
    whole = _object(context=_object(**sides["context"]), candidates=_rows(sides["candidate"]))
    return whole | {"properties": whole["properties"] | options, "additionalProperties": False}


def _rows(features: dict[str, Schema]) -> Schema:
    """Columns, or rows."""
    columns = _object(**{name: {"type": "array", "items": one} for name, one in features.items()})
    return {"oneOf": [columns, {"type": "array", "items": _object(**features)}]}


def _feature(feature: Feature) -> Schema:
    """One row of it."""
    if feature.datatype == TEXT_TYPE:
        return TEXT | {"description": "of an item"}
    kind = "boolean" if feature.datatype == "BOOL" else "number"
    value: Schema = {"type": "integer" if "INT" in feature.datatype else kind}
    if isinstance(feature.bounds, int):
        value |= {"minimum": 0, "maximum": feature.bounds - 1}
    whole = _nested(value, feature.shape, {v.axis: (v.low, v.high) for v in feature.varying})
    if feature.jagged:
        return {"type": "array", "items": whole, "description": f"{feature.datatype}, of any length"}
    return whole | {"description": feature.datatype}


def _ranking(model: ServedModel) -> Schema:
    each = {output.name: _scores(output) for output in model.outputs}
    scores = next(iter(each.values())) if len(each) == 1 else _object(**each)
    order = {"type": "array", "items": {"type": "integer", "minimum": 0}, "description": "best first"}
    return _object(model={"const": model.name}, version=TEXT, scores=scores, order=order)


def _scores(output: Output) -> Schema:
    """`[N, 1]` is a list of numbers, too; null stands for NaN and infinities."""
    value = {"type": ["boolean" if output.datatype == "BOOL" else "number", "null"]}
    return {"type": "array", "items": _nested(value, () if output.orders else output.shape)}


def _nested(value: Schema, shape: tuple[int, ...], free: Mapping[int, tuple[int, int | None]] | None = None) -> Schema:
    """Lists in lists; those of `free` axes have any length within bounds."""
    bounds = {axis: (size, size) if size >= 0 else (0, None) for axis, size in enumerate(shape, 1)} | dict(free or {})
    for _, (low, high) in sorted(bounds.items(), reverse=True):
        most = {} if high is None else {"maxItems": high}
        value = {"type": "array", "items": value, "minItems": low, **most}
    return value


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _schemas() -> dict[str, Schema]:
    """Of the protocol v2, and of a refusal."""
    entry = _object(name=TEXT, shape=SIZES, datatype={"enum": [*DATATYPES, TEXT_TYPE]})
    data = {"data": {"type": "array"}, "parameters": {"type": "object"}}
    tensor = entry | {"properties": entry["properties"] | data}
    inputs = {"type": "array", "items": tensor, "description": f"with R > 1 rows of context, {OFFSETS} INT64 [R + 1]"}
    request, refusal = _object(inputs=inputs), _object(error=TEXT, reason={"enum": list(REASONS)})
    wanted = {"type": "array", "items": _object(name=TEXT)}
    request["properties"] |= {"id": TEXT, "parameters": {"type": "object"}, "outputs": wanted}
    refusal["properties"] |= {"input": TEXT | {"description": "the feature that it is about"}}
    tensors, listed = {"type": "array", "items": tensor}, {"type": "array", "items": TEXT}
    entries = {"type": "array", "items": entry}
    return {
        "InferRequest": request,
        "InferResponse": _object(model_name=TEXT, model_version=TEXT, outputs=tensors),
        "Metadata": _object(name=TEXT, versions=listed, platform=TEXT, inputs=entries, outputs=entries),
        "Refusal": refusal,
    }
