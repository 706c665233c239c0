"""Tensors on disk: they are restored exactly, and damage is always a CheckpointError."""

import contextlib
import json
import os
import random
import re
from pathlib import Path

import pytest
import torch

import pyro_bnn
from pyro_bnn.runtime import tensor_files
from pyro_bnn.runtime.tensor_files import (
    CheckpointError,
    load_tensors,
    save_tensors,
    write_atomically,
)


def content():
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "float": torch.randn(3, 2),
        "double": torch.randn(2, dtype=torch.float64),
        "bfloat16": torch.randn(5).bfloat16(),
        "int": torch.tensor([-(2**62), 7]),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "shared": base,
        "view": base[1:],
        "transposed": base.T,
        "expanded": torch.ones(1).expand(6),
        "learned": torch.nn.Parameter(torch.ones(2)),
        "nan": torch.tensor([float("nan"), float("inf")]),
    }
    facts = {
        "step": 3,
        "x": 0.1 + 0.2,
        "nan": float("nan"),
        "list": [1, None, "é"],
        "nested": {"a.b": [1.5e-300]},
    }
    return tensors, facts


def same(tensors, others):
    if tensors.keys() != others.keys():
        return False
    for name, value in tensors.items():
        other = others[name]
        if value.dtype != other.dtype or value.shape != other.shape:
            return False
        if not torch.equal(value.nan_to_num(), other.nan_to_num()):
            return False
    return True


def test_tensors_and_facts_are_loaded_as_they_were_saved(tmp_path):
    tensors, facts = content()
    save_tensors(tmp_path / "new" / "folder" / "run.v1", tensors, facts)
    got, record = load_tensors(tmp_path / "new" / "folder" / "run.v1")
    assert same(got, {name: value.detach() for name, value in tensors.items()})
    assert repr(record) == repr(facts)
    got["shared"][1] = -1  # loaded tensors share no memory
    assert (got["view"] >= 0).all()


def test_saving_removes_outdated_tensors_and_unfinished_files(tmp_path):
    other = tmp_path / "other-0123456789ab.safetensors"
    other.write_bytes(b"")
    (tmp_path / ".a[1].json.77.part").write_bytes(b"x")
    (tmp_path / ".a[1]-0123456789ab.safetensors.77.part").write_bytes(b"x")
    for value in range(3):
        save_tensors(tmp_path / "a[1]", {"x": torch.tensor(value)}, {})
    assert load_tensors(tmp_path / "a[1]")[0]["x"] == 2
    assert len(list(tmp_path.iterdir())) == 3
    assert other.exists()


def pair(folder):
    save_tensors(
        folder / "run",
        {"x": torch.arange(40.0), "n": torch.tensor(3)},
        {"step": 12, "history": [0.5, 1.25]},
    )
    return sorted(folder.iterdir())


def mutate(content, generator):
    kind = generator.choice(["cut", "extend", "flip", "flip", "flip", "zero", "swap"])
    data = bytearray(content)
    if kind == "cut":
        del data[generator.randrange(len(data)) :]
    elif kind == "extend":
        data += generator.randbytes(generator.randrange(1, 20))
    elif kind == "flip":
        for _ in range(generator.choice([1, 1, 2, 5])):
            data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    elif kind == "zero":
        start = generator.randrange(len(data))
        data[start : start + 8] = bytes(len(data[start : start + 8]))
    else:
        i, j = generator.randrange(len(data)), generator.randrange(len(data))
        data[i], data[j] = data[j], data[i]
    return bytes(data)


def test_a_damaged_file_is_an_error_unless_its_content_is_unchanged(tmp_path):
    files = pair(tmp_path)
    assert {file.suffix for file in files} == {".json", ".safetensors"}
    before = load_tensors(tmp_path / "run")
    generator, harmless = random.Random(0), 0
    for _ in range(1000):
        file = generator.choice(files)
        original = file.read_bytes()
        file.write_bytes(mutate(original, generator))
        with contextlib.suppress(CheckpointError):
            tensors, facts = load_tensors(tmp_path / "run")
            harmless += 1
            assert same(tensors, before[0])
            assert facts == before[1]
        file.write_bytes(original)
    assert harmless < 100


def forge(index, **changes):
    record = json.loads(index.read_bytes()) | changes
    record.pop("checksum")
    index.write_text(json.dumps(record | {"checksum": tensor_files._checksum(record)}))


@pytest.mark.parametrize(
    "name",
    [
        "../secret-{}.safetensors",
        "/etc/passwd",
        "..",
        "",
        "a\0b",
        "sub/run-{}.safetensors",
        7,
        None,
    ],
)
def test_json_that_names_a_file_elsewhere_is_an_error(tmp_path, name):
    folder = tmp_path / "run"
    index, tensors = pair(folder)[::-1]
    digest = json.loads(index.read_bytes())["sha256"][:12]
    (folder / "sub").mkdir()
    for place in (tmp_path / f"secret-{digest}.safetensors", folder / "sub" / tensors.name):
        place.write_bytes(tensors.read_bytes())
    forge(index, tensors=name.format(digest) if isinstance(name, str) else name)
    with pytest.raises(CheckpointError, match="expected tensors in a file beside it"):
        load_tensors(folder / "run")


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"3", b"null", b"{}", b"[" * 100_000, b"\xff\xfe", b'{"checksum": 1}']
)
def test_json_of_another_format_is_an_error(tmp_path, text):
    index, _ = pair(tmp_path)[::-1]
    index.write_bytes(text)
    with pytest.raises(CheckpointError, match="expected JSON with tensors"):
        load_tensors(tmp_path / "run")


@pytest.mark.parametrize(
    ("sha256", "message"),
    [
        (5, "expected JSON with tensors"),
        (None, "expected JSON with tensors"),
        ("0" * 64, "expected tensors in a file beside it"),
    ],
)
def test_json_with_a_wrong_hash_is_an_error(tmp_path, sha256, message):
    index, _ = pair(tmp_path)[::-1]
    forge(index, sha256=sha256)
    with pytest.raises(CheckpointError, match=message):
        load_tensors(tmp_path / "run")


def test_a_missing_file_or_a_folder_in_its_place_is_an_error(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"nothing\.json: expected a file that was saved before"
    ):
        load_tensors(tmp_path / "nothing")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_tensors(tmp_path / "folder")
    index, tensors = pair(tmp_path / "run")[::-1]
    tensors.unlink()
    with pytest.raises(CheckpointError, match="safetensors: cannot be read"):
        load_tensors(tmp_path / "run" / "run")
    with pytest.raises(CheckpointError, match="cannot write"):
        save_tensors(index / "below a file", {}, {})


class Died(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("call", range(1, 9))
def test_a_crash_at_any_moment_of_saving_leaves_a_valid_pair_of_files(tmp_path, monkeypatch, call):
    save_tensors(tmp_path / "run", {"x": torch.zeros(3)}, {"step": 1})
    count = 0

    def dying(function):
        def wrapped(*args, **kwargs):
            nonlocal count
            count += 1
            if count >= call:  # a dead process does nothing more
                raise Died
            return function(*args, **kwargs)

        return wrapped

    with monkeypatch.context() as patch:
        for name in ("fsync", "replace"):
            patch.setattr(tensor_files.os, name, dying(getattr(os, name)))
        patch.setattr(tensor_files.Path, "unlink", dying(Path.unlink))
        try:
            save_tensors(tmp_path / "run", {"x": torch.ones(3)}, {"step": 2})
        except Died:
            assert count >= call
    tensors, facts = load_tensors(tmp_path / "run")
    assert (facts["step"], tensors["x"].tolist()) in ((1, [0.0] * 3), (2, [1.0] * 3))
    save_tensors(tmp_path / "run", {"x": torch.ones(3)}, {"step": 3})
    assert load_tensors(tmp_path / "run")[1] == {"step": 3}
    assert len(list(tmp_path.iterdir())) == 2


def test_a_full_disk_leaves_the_file_unchanged_and_nothing_beside_it(tmp_path, monkeypatch):
    file = tmp_path / "file"
    write_atomically(file, b"before")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(file, b"after")
    assert file.read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 1


def test_facts_that_json_cannot_represent_are_an_error_and_leave_no_file(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_tensors(tmp_path / "run", {"x": torch.ones(1)}, {"bad": object()})
    assert not list(tmp_path.iterdir())


UNPICKLES = re.compile(
    r"^\s*import pickle|from pickle|torch\.load\(|weights_only|yaml\.load|allow_pickle=True", re.M
)


def test_no_module_of_the_package_unpickles_a_file():
    for file in Path(pyro_bnn.__file__).parent.rglob("*.py"):
        assert not UNPICKLES.search(file.read_text()), file
