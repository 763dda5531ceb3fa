"""Checkpoints, networks and histories with anything in any place of their descriptions."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vegrad
from safetensors.numpy import load_file, save_file
from vegrad import clipping

NESTED = "[" * 100_000 + "]" * 100_000
ODD = [None, True, -1, 2**200, 1e308, "", "x", [], {}, [[]], {"a": 1}, [None] * 3, "nan", 0.5]


def make() -> vegrad.MLP:
    return vegrad.MLP([3, 4, 2], loss="mse", seed=0)


def fit(net: vegrad.MLP, optimizer: vegrad.optim.Optimizer, **more: Any) -> vegrad.History:
    x = np.random.default_rng(0).standard_normal((20, 3))
    options = {"epochs": 2, "batch_size": 8, "progress": False, "on_finding": None} | more
    return net.fit(x, x[:, :2], optimizer=optimizer, **options)


def optimizer() -> vegrad.optim.Optimizer:
    return vegrad.AdamW(clip=clipping.SkipSpike())


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Make the paths of all entries of a description, the branches included."""
    yield path
    if isinstance(value, dict | list):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(entry, (*path, key))


def changed(about: Any, path: tuple[Any, ...], odd: Any) -> Any:
    if not path:
        return odd
    found = copy.deepcopy(about)
    inner = found
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = odd
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("broken")
    net = make()
    fit(net, optimizer(), checkpoint=folder / "state")
    net.save(folder / "network")
    return folder


def about_of(path: Path) -> Any:
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    return json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["vegrad"])


@pytest.mark.parametrize("name", ["state", "network"])
def test_anything_in_any_place(files: Path, name: str, tmp_path: Path) -> None:
    """It is read, or a ValueError that names the file; then nothing has changed."""
    arrays, about = load_file(files / name), about_of(files / name)
    path, tried, refused = tmp_path / name, 0, 0
    for place in places(about):
        for odd in ODD:
            save_file(arrays, path, {"vegrad": json.dumps(changed(about, place, odd))})
            net, steps, tried = make(), optimizer(), tried + 1
            before = [p.tobytes() for p in net.parameters.values()]
            try:
                if name == "state":
                    fit(net, steps, resume=path)
                else:
                    vegrad.MLP.load(path)
            except ValueError as error:
                refused += 1
                assert str(path) in str(error), (place, odd)  # noqa: PT017
                assert [p.tobytes() for p in net.parameters.values()] == before, (place, odd)
    assert tried > 200
    assert refused > tried / 2


@pytest.mark.parametrize("name", ["state", "network"])
@pytest.mark.parametrize("text", [NESTED, '{"kind": ' + NESTED + "}", "1e999", "[1, 2", '"x"'])
def test_metadata_that_is_nested_or_cut(files: Path, name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / name
    save_file(load_file(files / name), path, {"vegrad": text})
    with pytest.raises(ValueError, match=f"{name} cannot be read as vegrad's"):
        fit(make(), optimizer(), resume=path) if name == "state" else vegrad.MLP.load(path)


def test_arrays_that_are_none(files: Path, tmp_path: Path) -> None:
    """Each array of a checkpoint in another shape and dtype, and left out."""
    arrays, about = load_file(files / "state"), about_of(files / "state")
    path = tmp_path / "state"
    for name, array in arrays.items():
        same = np.zeros(array.shape, np.int16)
        for odd in (None, np.zeros((0,)), np.zeros(()), np.zeros((2, 3, 4)), same):
            rest = {n: a for n, a in arrays.items() if n != name}
            there = rest if odd is None else rest | {name: odd}
            save_file(there, path, {"vegrad": json.dumps(about)})
            net = make()
            before = [p.tobytes() for p in net.parameters.values()]
            try:
                fit(net, optimizer(), resume=path)
            except ValueError as error:
                assert str(path) in str(error), (name, odd)  # noqa: PT017
                assert [p.tobytes() for p in net.parameters.values()] == before, (name, odd)


def test_histories_that_are_none(tmp_path: Path) -> None:
    """Anything in any place of `to_dict` is a history that can be looked at, or a ValueError."""
    columns, path = fit(make(), optimizer()).to_dict(), tmp_path / "history.json"
    refused = 0
    for place in places(columns):
        for odd in ODD:
            other = changed(columns, place, odd)
            try:
                history = vegrad.History.from_dict(other)
            except ValueError:
                refused += 1
                path.write_text(json.dumps(other))
                with pytest.raises(ValueError, match=str(path)):
                    vegrad.read_run(path)
                continue
            assert history.findings is not None, (place, odd)
            history.to_dict()
            history.save(path)
            assert vegrad.read_run(path).steps is not None
    assert refused > 300
