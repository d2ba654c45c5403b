"""The file of an artifact: a zip of a few members, not compressed, and a manifest with the checksum of each.

`manifest.json` says which format the file has and what wrote it. Everything about the file is checked before a member
is used: that the zip is whole, that its members are those of the format and no others, their sizes and their checksums.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import IO, Any

from rankhoist.arguments import path_of, writing
from rankhoist.errors import ArtifactError
from rankhoist.runtime.plain import entry, shown
from rankhoist.runtime.tensor_file import PIECE, Piece
from rankhoist.runtime.versions import versions
from rankhoist.runtime.whole import written

FORMAT = 1
MANIFEST = "manifest.json"
MEMBERS = ("model.json", "stages.json", "weights.safetensors", "example.safetensors")
LARGEST_MANIFEST = 2**20
ADVICE = "it may be damaged or incomplete: copy it again, or save the model again"


class RefusedError(ArtifactError):
    """The file is whole, but needs what is not here: a later version, or modules."""


class Container:
    """An open artifact."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self._archive = archive
        self._infos = {info.filename: info for info in archive.infolist()}
        if MANIFEST not in self._infos or self._infos[MANIFEST].file_size > LARGEST_MANIFEST:
            raise ArtifactError(f"it has no {MANIFEST}, so it is no artifact of rankhoist")
        _check_sizes([self._infos[MANIFEST]], size)
        self.manifest = from_json(archive.read(self._infos[MANIFEST]))
        _check_format(self.manifest)  # first: a later format may store its other members in another way
        _check_sizes(archive.infolist(), size)
        names = sorted(info.filename for info in archive.infolist())
        if names != sorted([MANIFEST, *MEMBERS]):
            odd = sorted({*names} ^ {MANIFEST, *MEMBERS}) or names
            raise ArtifactError(f"its members are not those of an artifact: {', '.join(map(shown, odd[:5]))}")
        _check_manifest(self.manifest)

    @contextmanager
    def member(self, name: str) -> Iterator[tuple[IO[bytes], int]]:
        """A member to read, which is what the manifest says, and its size; it may be larger than the memory left."""
        expected, size = self.manifest["members"][name], self._infos[name].file_size
        if size != expected["bytes"]:
            raise ArtifactError(f"{name} has not the size that the manifest says")
        digest = hashlib.sha256()
        with self._archive.open(name) as file:
            while piece := file.read(PIECE):
                digest.update(piece)
        if digest.hexdigest() != expected["sha256"]:
            raise ArtifactError(f"the checksum of {name} is wrong")
        with self._archive.open(name) as file:
            yield file, size

    def read(self, name: str) -> bytes:
        """All of a member."""
        with self.member(name) as (file, _):
            return file.read()

    def read_json(self, name: str) -> Any:
        """A member that holds data."""
        return from_json(self.read(name))


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Container]:
    """An artifact to read.

    Raises:
        ArtifactError: for whatever goes wrong in the block, with the path and what to do.
    """
    path = path_of(path)
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            yield Container(archive, os.fstat(file.fileno()).st_size)
    except RefusedError as error:
        raise ArtifactError(f"{path} cannot be loaded: {error}") from error
    except ArtifactError as error:
        raise ArtifactError(f"{path} cannot be loaded: {error}; {ADVICE}") from error
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    except zipfile.BadZipFile as error:
        raise ArtifactError(f"{path} is no artifact of rankhoist ({error}); {ADVICE}") from error
    except Exception as error:  # a file that somebody made up can break any reader in any way
        raise ArtifactError(f"{path} cannot be loaded: {type(error).__name__}: {error}; {ADVICE}") from error


def write(path: str | os.PathLike[str], members: Mapping[str, bytes | Sequence[Piece]]) -> None:
    """Write an artifact, whole or not at all; what is large comes in pieces."""
    path = path_of(path)
    if sorted(members) != sorted(MEMBERS):
        raise ValueError(f"an artifact has the members {MEMBERS}")
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with writing(path), written(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        listed = {name: _written(archive, name, pieces_of(data)) for name, data in members.items()}
        manifest = {"format": FORMAT, "date": date, "versions": versions(), "members": listed}
        archive.writestr(zipfile.ZipInfo(MANIFEST), to_json(manifest))


def pieces_of(data: bytes | Sequence[Piece]) -> Sequence[Piece]:
    """A member in pieces."""
    return [data] if isinstance(data, bytes) else data


def _written(archive: zipfile.ZipFile, name: str, pieces: Sequence[Piece]) -> dict[str, Any]:
    """What the manifest says of a member, which is of what was written, though another thread changes it meanwhile."""
    info, digest = zipfile.ZipInfo(name), hashlib.sha256()
    info.file_size = size = sum(map(len, pieces))
    with archive.open(info, "w") as file:
        for piece in pieces:
            for start in range(0, len(piece), PIECE):
                part = bytes(piece[start : start + PIECE])
                digest.update(part)
                file.write(part)
    return {"bytes": size, "sha256": digest.hexdigest()}


def to_json(data: Any) -> bytes:
    """As text; NaN and infinities, which JSON lacks, are refused."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).encode()


def from_json(data: bytes) -> Any:
    """The inverse of `to_json`."""

    def refused(constant: str) -> Any:
        raise ArtifactError(f"it has {constant} for a number")

    return json.loads(data, parse_constant=refused)


def _check_format(manifest: Any) -> None:
    found = entry(manifest, "format", int)
    if found > FORMAT:
        by, own = entry(manifest, "versions", dict).get("rankhoist"), versions()["rankhoist"]
        raise RefusedError(
            f"it has format {found}, written by rankhoist {shown(by)}; this is rankhoist {own}, which reads formats up "
            f"to {FORMAT}. Upgrade rankhoist, or save the model again with this version"
        )
    if found < 1:
        raise ArtifactError(f"it has format {found}, which never was")


def _check_manifest(manifest: Any) -> None:
    """Beside the format: who wrote it and when, and what it lists."""
    entry(manifest, "date", str)
    for name in entry(manifest, "versions", dict):
        entry(manifest["versions"], name, str)
    for name in MEMBERS:
        listed = entry(entry(manifest, "members", dict), name, dict)
        entry(listed, "bytes", int), entry(listed, "sha256", str)


def _check_sizes(infos: list[zipfile.ZipInfo], size: int) -> None:
    """Nothing is compressed, so that what is read is never more than what is there."""
    for info in infos:
        stored = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
        if not stored or not 0 <= info.file_size <= size:
            raise ArtifactError(f"{shown(info.filename)} is not stored as an artifact stores it")
