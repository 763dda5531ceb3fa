"""Saved networks: the same bits, whole files or none, and an error for every other file."""

import json
import os
import pickle
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vegrad
from safetensors import safe_open
from safetensors.numpy import save_file
from vegrad.arrays import files

CONFIGS: list[dict[str, Any]] = [
    {"sizes": [5, 8, 3], "seed": 1},
    {"sizes": [1, 1], "dtype": "float64", "init": "orthogonal"},
    {
        "sizes": [7, 9, 9, 4],
        "activation": "gelu",
        "norm": "rms",
        "residual": True,
        "init": "normal",
        "sigma_w": 1.2,
        "sigma_b": 0.1,
        "loss": "cross_entropy",
    },
]


def make(config: dict[str, Any]) -> vegrad.MLP:
    net = vegrad.MLP(**config)
    rng = np.random.default_rng(0)
    for parameter in net.parameters.values():
        parameter[...] = rng.standard_normal(parameter.shape)
    next(iter(net.parameters.values())).flat[0] = 5e-324  # rounding would lose this
    return net


@pytest.mark.parametrize("config", CONFIGS)
def test_a_network_comes_back_the_same(tmp_path: Path, config: dict[str, Any]) -> None:
    net = make(config)
    net.save(tmp_path / "net.safetensors")
    again = vegrad.MLP.load(str(tmp_path / "net.safetensors"))
    assert again.config == net.config
    assert list(again.parameters) == list(net.parameters)
    for name, parameter in net.parameters.items():
        assert again.parameters[name].tobytes() == parameter.tobytes()
    x = np.random.default_rng(1).standard_normal((6, net.config["sizes"][0]))
    assert again.forward(x).tobytes() == net.forward(x).tobytes()


def test_others_can_read_it(tmp_path: Path) -> None:
    net = make(CONFIGS[0])
    net.save(tmp_path / "net")
    with safe_open(tmp_path / "net", framework="numpy") as file:
        about = json.loads(file.metadata()["vegrad"])
        assert about["config"]["sizes"] == [5, 8, 3]
        assert about["version"] == vegrad.__version__
        np.testing.assert_array_equal(
            file.get_tensor("layers.1.weight"), net.parameters["layers.1.weight"]
        )


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    make(CONFIGS[0]).save(tmp_path / "net")
    content = (tmp_path / "net").read_bytes()
    for length in range(0, len(content), 7):
        (tmp_path / "part").write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"part cannot be read as vegrad's: ."):
            vegrad.MLP.load(tmp_path / "part")


def test_files_of_others(tmp_path: Path) -> None:
    path = tmp_path / "other"

    def refused(said: str) -> None:
        with pytest.raises(ValueError, match=f"other cannot be read as vegrad's: .*{said}"):
            vegrad.MLP.load(path)

    path.write_bytes(pickle.dumps({"weights": [1, 2]}))
    refused("header")
    arrays = {name: p.copy() for name, p in make(CONFIGS[0]).parameters.items()}
    save_file(arrays, path)
    refused("not written by vegrad")
    config = dict(make(CONFIGS[0]).config)

    def save(kind: Any = "MLP", changed: Any = arrays, **other: Any) -> None:
        save_file(changed, path, {"vegrad": json.dumps({"kind": kind, "config": config | other})})

    save()
    vegrad.MLP.load(path)  # a control
    save("History")
    refused("'History', not 'MLP'")
    save(activation="swish")
    refused("activation must be one of .*'swish'")
    save(sizes=[5, 9, 3])
    refused("layers.0.weight.*\\(9, 5\\).*not.*\\(8, 5\\)")
    save(dtype="float64")
    refused("layers.0.bias|layers.0.weight must be float64, not float32")
    save(changed=arrays | {"more": np.ones(2)})
    refused("more")
    save(unknown=3)
    refused("unknown")
    save_file(arrays, path, {"vegrad": "[]"})
    refused("not 'MLP'")
    save_file(arrays, path, {"vegrad": "{"})
    refused(".")


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        vegrad.MLP.load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError):
        make(CONFIGS[0]).save(tmp_path / "nowhere" / "net")


def test_what_was_there_stays_if_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net"
    first = make(CONFIGS[0])
    first.save(path)
    before = path.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="full"):
        make(CONFIGS[2]).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["net"]  # no temporary file is left


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_the_file_has_the_mode_of_any_new_file(tmp_path: Path) -> None:
    make(CONFIGS[0]).save(tmp_path / "net")
    (tmp_path / "plain").touch()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("net", "plain")]
    assert modes[0] == modes[1]


def test_what_a_kill_left_is_removed(tmp_path: Path) -> None:
    names = [f".{'0' * 15}{n}.a.b" for n in range(3)]
    others = [".a.b", ".c.a.b", ".0000000000000000.a.c", "0000000000000000.a.b", "a.b"]
    for name in [*names, *others]:
        (tmp_path / name).touch()
    for name in [names[0], names[1], *others]:
        os.utime(tmp_path / name, (1e9, 1e9))
    files.remove_leftovers(tmp_path / "a.b")
    assert {path.name for path in tmp_path.iterdir()} == {names[2], *others}


def run_python(code: str, **options: Any) -> Any:
    return subprocess.run([sys.executable, "-c", code], check=True, timeout=60, **options)


@pytest.mark.skipif(os.name != "posix", reason="there is no /dev/stdout")
def test_a_pipe_and_the_standard_output_get_the_content(tmp_path: Path) -> None:
    """They stay what they are: no file is put in their place."""
    code = "from vegrad.arrays.files import save_bytes; save_bytes('{}', b'whole')"
    to = code.format("/dev/stdout")
    assert run_python(to, capture_output=True).stdout == b"whole"
    with (tmp_path / "out").open("wb") as file:
        run_python(to, stdout=file)
    assert (tmp_path / "out").read_bytes() == b"whole"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as threads:
        read = threads.submit(pipe.read_bytes)
        run_python(code.format(pipe))
        assert read.result(60) == b"whole"
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "pipe"]


def test_a_missing_folder_is_named_alone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no/net'$"):
        make(CONFIGS[0]).save(tmp_path / "no" / "net")
