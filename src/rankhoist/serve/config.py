"""All settings of the server: one schema for flags, environment variables (`RANKHOIST_PORT`) and a TOML file.

A flag wins over the environment, the environment over the file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from rankhoist.errors import ServeError

CONFIG = "RANKHOIST_CONFIG"


class Settings(BaseSettings):
    """What `rankhoist serve` can be told."""

    model_config = SettingsConfigDict(env_prefix="RANKHOIST_", extra="forbid", frozen=True)

    models: dict[str, Path] = Field(default={}, description="name -> artifact, or folder whose last artifact is served")
    catalogues: dict[str, Path] = Field(
        default={},
        description="name of a model -> its items: Parquet files, or a folder of HoistedModel.catalogue",
    )
    item_id: str = Field(default="item_id", description="column with the ids of items, and their name in requests")
    catalogue_dtype: Literal["bfloat16", "int8"] | None = Field(
        default=None, description="what floats of a catalogue are kept in, where not as they are computed"
    )
    put_items: bool = Field(default=False, description="answer the route that puts items into a catalogue")
    host: str = Field(default="127.0.0.1", description="address to listen on; 0.0.0.0 for all")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0: a free one")
    grpc_port: int | None = Field(default=None, ge=0, le=65535, description="port for gRPC, too; 0: a free one")
    workers: int = Field(default=1, ge=1, le=1024, description="processes that serve")
    device: str = Field(
        default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="where models are served: cpu, cuda, cuda:1"
    )
    backend: Literal["eager", "inductor", "onnx", "openvino", "graphs", "inductor-graphs"] | None = Field(
        default=None, description="what runs the models; by default what each was tuned for, else eager"
    )
    threads: int = Field(default=1, ge=1, le=1024, description="torch threads of each worker")
    max_body_bytes: int = Field(default=2**25, ge=1, description="of a request; larger ones: 413")
    body_seconds: float = Field(default=30.0, gt=0, description="that a request's body may take to come; longer: 408")
    max_candidates: int = Field(default=100_000, ge=1, description="of a request; more: 413")
    max_requests: int = Field(
        default=1024, ge=1, description="rows of context in one call of the protocol v2; more: 413"
    )
    max_values: int = Field(
        default=10_000, ge=1, description="in one row of a jagged feature, or along an axis that varies; more: 413"
    )
    max_queue: int = Field(
        default=64, ge=1, description="requests that a worker reads, keeps waiting or scores; more: 429"
    )
    batch_candidates: int = Field(
        default=4096, ge=0, description="candidates of requests scored together; 0: one by one"
    )
    batch_up_to: int | None = Field(
        default=None, ge=0, description="join requests of up to so many candidates; measured when a model is loaded"
    )
    batch_delay_ms: float = Field(default=0.0, ge=0, le=1000, description="a request waits so long for others to join")
    cache_bytes: int = Field(default=2**26, ge=0, description="of prepared states, for each worker and model")
    cache_seconds: float = Field(default=300.0, ge=0, description="that a prepared state is kept")
    timeout_ms: float | None = Field(
        default=None, gt=0, description="in the queue, for requests that say none; later: 503"
    )
    drain_seconds: float = Field(default=30.0, ge=0, description="to answer what was accepted, after SIGTERM")
    allow_nan: bool = Field(default=False, description="take NaN and infinities in features")
    admin: bool = Field(default=False, description="answer the routes that load and unload models")
    repository: Path | None = Field(default=None, description="folder of models that can be loaded by name")
    max_models: int = Field(default=64, ge=1, description="that are served at once")
    page: bool = Field(default=True, description="show people a page at / and the report of each model")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="what is logged")
    log_format: Literal["auto", "json", "text"] = Field(
        default="auto", description="one JSON object per line, or text; auto: text on a terminal"
    )
    access_log: bool = Field(default=False, description="log every request")
    slow_ms: float | None = Field(default=None, gt=0, description="log requests that took longer, with their stages")
    traces: bool = Field(default=False, description="OpenTelemetry traces, sent as its OTEL_... variables say")

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource, dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:  # fmt: skip
        file = os.environ.get(CONFIG)
        toml = [TomlConfigSettingsSource(settings_cls, Path(file))] if file else []
        return (init_settings, env_settings, *toml)


def settings_of(flags: dict[str, Any], file: str | None = None) -> Settings:
    """Settings from flags, the environment and a file (or the one that `RANKHOIST_CONFIG` names).

    Raises:
        ServeError: a setting is unknown or out of its range, or the file cannot be read.
    """
    file = file or os.environ.get(CONFIG)
    if file is not None:
        if not Path(file).is_file():
            raise ServeError(f"there is no settings file {file}")
        os.environ[CONFIG] = file
    try:
        return Settings(**flags)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "settings"
        known = f"; settings are {', '.join(Settings.model_fields)}" if first["type"] == "extra_forbidden" else ""
        raise ServeError(f"{name}: {first['msg']}, got {first.get('input')!r:.60}{known}") from None
    except ValueError as error:  # of TOML, or of JSON in an environment variable
        raise ServeError(f"the settings cannot be read: {error}") from None
