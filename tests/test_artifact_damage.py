"""Files that are cut, changed or of another format: noticed and refused, or harmless."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from artifacts import ADVICE, identical, made, members, ranker_inputs, rewrite, saved_ranker
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rankhoist import ArtifactError, HoistedModel, load
from rankhoist.runtime import container


@pytest.fixture
def hoisted() -> HoistedModel:
    return made("ranker")[1]


@pytest.fixture
def saved() -> bytes:
    return saved_ranker()


@pytest.fixture
def path(tmp_path: Path, saved: bytes) -> Path:
    (tmp_path / "model.rankhoist").write_bytes(saved)
    return tmp_path / "model.rankhoist"


def test_files_that_are_no_artifacts(tmp_path):
    (tmp_path / "text").write_text("hello")
    rewrite(tmp_path / "zip", {"hello.txt": b"hello"})
    for name, message in (
        ("none", "No such file"),
        ("", "Is a directory"),
        ("text", "no artifact"),
        ("zip", "no manifest"),
    ):
        with pytest.raises(ArtifactError, match=message):
            load(tmp_path / name)


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file(path, saved, share):
    path.write_bytes(saved[: int(share * len(saved))])
    with pytest.raises(ArtifactError, match=rf"model\.rankhoist .*{ADVICE}"):
        load(path)


@pytest.mark.parametrize("member", [container.MANIFEST, *container.MEMBERS])
def test_a_flipped_byte_in_every_member(path, saved, member):
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(member)
    start = info.header_offset + 30 + len(member)
    for position in (start, start + info.file_size // 2, start + info.file_size - 1):
        path.write_bytes(saved[:position] + bytes([saved[position] ^ 1]) + saved[position + 1 :])
        with pytest.raises(ArtifactError, match=ADVICE):
            load(path)


@settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_damage_is_noticed_or_harmless(path, saved, hoisted, data):
    damaged = bytearray(saved)
    last_parts = st.integers(len(saved) - 600, len(saved) - 1)  # the zip's directory, where nothing has a checksum
    positions = st.one_of(st.integers(0, len(saved) - 1), last_parts)
    for position in data.draw(st.lists(positions, min_size=1, max_size=3)):
        damaged[position] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    try:
        loaded = load(path)
    except ArtifactError:
        return
    given = ranker_inputs(1, 20)
    assert identical(loaded(*given), hoisted(*given))


@pytest.mark.parametrize("member", container.MEMBERS)
def test_a_wrong_checksum(path, member):
    contents = members(path)
    contents[member] = contents[member].replace(b"0", b"1", 1)
    rewrite(path, contents)
    with pytest.raises(ArtifactError, match=f"the checksum of {member} is wrong"):
        load(path)


@pytest.mark.parametrize("missing", ["format", "members", "date", "versions"])
def test_a_manifest_that_lacks_something(path, missing):
    contents = members(path)
    manifest = json.loads(contents["manifest.json"])
    del manifest[missing]
    rewrite(path, contents | {"manifest.json": json.dumps(manifest).encode()})
    with pytest.raises(ArtifactError, match=f"it lacks '{missing}'"):
        load(path)


def test_a_newer_format_names_both_versions(path):
    contents = members(path)
    manifest = json.loads(contents["manifest.json"])
    newer = {"format": 2, "versions": {"rankhoist": "9.1"}, "members": {}, "date": manifest["date"]}
    for packed in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("manifest.json", json.dumps(newer))
            archive.writestr("unheard.of", b"0" * 1000, packed)
        with pytest.raises(ArtifactError, match=r"format 2, written by rankhoist '9\.1'; this is rankhoist .*Upgrade"):
            load(path)


@pytest.mark.parametrize("name", ["extra.py", "../outside", "/tmp/outside", "model.json/x"])
def test_other_members_are_refused(path, name):
    rewrite(path, members(path) | {name: b"import os"})
    with pytest.raises(ArtifactError, match="its members are not those of an artifact"):
        load(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_are_there_once(path):
    contents = members(path)
    missing = {k: v for k, v in contents.items() if k != "stages.json"}
    rewrite(path, missing)
    with pytest.raises(ArtifactError, match=r"not those of an artifact: 'stages\.json'"):
        load(path)
    rewrite(path, contents)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("stages.json", contents["stages.json"])
    with pytest.raises(ArtifactError, match="not those of an artifact"):
        load(path)


def test_compressed_members_are_refused(path):
    rewrite(path, members(path), zipfile.ZIP_DEFLATED)
    with pytest.raises(ArtifactError, match="is not stored as an artifact stores it"):
        load(path)
