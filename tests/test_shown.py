"""Names from users, modules and files: nothing that they hold drives a terminal or fills it.

Hostile names go through every public entry that shows names; what comes out, in text, pages,
pictures and errors, has no raw control character or mark of direction, and no error is longer than
a screen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vegrad
from vegrad.arrays.shown import escape, plainly, shown, some, visible
from vegrad.cli.commands import main

ESCAPE, TURN = "\x1b[2J\x9b31m", "\u202e\u2066\u200f"
HOSTILE = {
    "escape": f"a{ESCAPE}b",
    "direction": f"a{TURN}b",
    "lines": "a\nTraceback: all is lost\r\tb\u2028c",
    "nul": "a\0b",
    "surrogate": "a\udc80b",
    "long": "very long " * 1000,
    "all": f"{ESCAPE}{TURN}\n\0" * 2000,
}
names = pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)


def assert_plain(text: str, *, lines: bool = True) -> None:
    """No control character, mark of direction or half of a pair is in it."""
    bad = {c for c in text if not (c.isprintable() or (lines and c == "\n"))}
    assert not bad, f"{bad!r} in {text[:300]!r}"


def assert_error(call: Callable[[], object], kind: Any = (ValueError, TypeError)) -> None:
    with pytest.raises(kind) as caught:
        call()
    said = str(caught.value)
    assert_plain(said, lines=False)
    assert len(said) <= 2000, said[:300]


# --------------------------------------------------------------------------------- the one function


def test_what_cannot_be_printed_is_written_out() -> None:
    assert visible("layers.0.weight δ 層 😀") == "layers.0.weight δ 層 😀"
    assert visible("a\x1b[2J\n\t\r\0\x7f\x9b") == r"a\x1b[2J\n\t\r\x00\x7f\x9b"
    assert visible("\u202e\u2066\ufeff\xa0") == r"\u202e\u2066\ufeff\xa0"
    assert visible("\udc80\U000e0001") == r"\udc80\U000e0001"
    assert visible("a\nb\x1b", lines=True) == "a\nb\\x1b"


@pytest.mark.parametrize("most", [2, 3, 7, 80])
def test_long_texts_keep_their_ends(most: int) -> None:
    for text in ("abcdefgh" * 100, "\x1b" * 100, "a" * most + "\n", "層" * 200):
        cut = visible(text, most)
        assert len(cut) <= most
        assert "…" in cut
    assert visible("x" * most, most) == "x" * most
    assert visible("0123456789" * 9, 9) == "0123…6789"


def test_values_in_messages() -> None:
    class Sly:
        def __repr__(self) -> str:
            raise RuntimeError

    assert shown(Sly()).startswith("<Sly")
    assert shown("a\x1b") == r"'a\x1b'"
    assert len(shown(list(range(10**5)))) <= 80
    assert len(shown(10**6000)) <= 80
    assert some(["a", "b\n", 3], 2) == r"a, b\n, … 1 more"
    assert escape("<b>\x1b\u202e\n") == "&lt;b&gt;\\x1b\\u202e\n"
    with pytest.raises(ValueError, match=r"^x+…x+$"), plainly():
        raise ValueError("x" * 10**5)


# ------------------------------------------------------------------------------------------ buffers


@names
def test_buffers(name: str) -> None:
    good, bad = np.ones(3), np.array([1.0, np.nan])
    measured = vegrad.measure({name: good, "deep": {name: [good]}})
    assert measured.names == [name, f"deep.{name}.0"]
    for text in (str(measured), measured._repr_html_()):
        assert_plain(text)
    for call in (
        lambda: vegrad.measure({name: 1.0}),
        lambda: vegrad.norm({name: {name: [{name: good.astype(int)}]}}),
        lambda: vegrad.clip_by_global_norm_({name: bad}, 1.0),
        lambda: vegrad.clip_by_norm_({name: good, "b": {name: good}}, 1.0),
        lambda: vegrad.clip_by_value_({"a": {name: good}, f"a.{name}": 1}, 1.0),
        lambda: vegrad.clipping.AdaGC().apply_({"a": {name: good}, f"a.{name}": good.copy()}),
        lambda: vegrad.SGD().step({name: good}, {"b": good.copy()}),
        lambda: vegrad.SGD().step({name: good}, {name: np.ones(4)}),
        lambda: vegrad.adaptive_clip_({name: good}, {}),
        lambda: vegrad.norm(
            type(name.replace("\0", "")[:9], (), {})() if "\udc80" not in name else 1
        ),
    ):
        assert_error(call)
    with pytest.raises(vegrad.NonFiniteGradientError) as caught:
        vegrad.clip_by_global_norm_({name: bad}, 1.0)
    assert caught.value.name == name


def test_paths_of_64_hostile_names() -> None:
    tree: Any = 1.0
    for _ in range(63):
        tree = {HOSTILE["all"]: tree}
    assert_error(lambda: vegrad.norm(tree))
    assert_error(lambda: vegrad.norm({"a": tree | {"b": {HOSTILE["all"]: tree}}}))


@names
def test_states(name: str) -> None:
    optimizer = vegrad.AdamW()
    optimizer.step({name: np.ones(3)}, {name: np.ones(3)})
    state = optimizer.state_dict()
    fresh = vegrad.AdamW()
    fresh.load_state_dict(state)
    assert_error(lambda: fresh.step({f"b{name}": np.ones(3)}, {f"b{name}": np.ones(3)}))
    assert_error(lambda: fresh.load_state_dict(state | {name: 1}))
    state["state"][name] |= {name: 1}
    assert_error(lambda: fresh.load_state_dict(state))
    state["state"][name] = {"step": name}
    assert_error(lambda: fresh.load_state_dict(state))
    rule = vegrad.clipping.GlobalNorm(1.0)
    assert_error(lambda: setattr(rule, name.lstrip("_"), 1), AttributeError)
    assert_error(lambda: rule.load_state_dict({"rule": name}))
    assert_error(lambda: rule.load_state_dict(rule.state_dict() | {"nonfinite": name}))


class Odd(Mapping[str, object]):
    """A mapping that is none: its parts are given."""

    def __init__(self, keys: Any = ("a",), length: Any = 1, value: Any = 1.0) -> None:
        self.all, self.length, self.value = keys, length, value

    def __iter__(self) -> Iterator[str]:
        return iter(self.all)

    def __len__(self) -> int:
        return int(self.length)

    def __getitem__(self, key: str) -> object:
        if self.value is None:
            raise KeyError(key)
        return self.value


class Pairless(Odd):
    def items(self) -> Any:
        return [1, 2]


class Nameless:
    """A key that has no text."""

    def __repr__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    "odd",
    [
        Odd(value=None),
        Odd(keys=5),
        Odd(length=-1, value=None),
        Pairless(),
        Odd(keys=(Nameless(),), value=np.ones(2)),
        {Nameless(): np.ones(2)},
        Odd(keys=("a", []), value=2.0),
    ],
)
def test_odd_mappings_are_type_errors(odd: Any) -> None:
    for passed in (odd, {"a": odd}, [odd]):
        assert_error(lambda p=passed: vegrad.measure(p), TypeError)
        assert_error(lambda p=passed: vegrad.clipping.AdaGC().apply_(p), TypeError)
    ring: dict[str, Any] = {}
    ring["a"] = ring
    assert_error(lambda: vegrad.measure(ring), TypeError)


def test_keys_of_other_kinds_are_names() -> None:
    """Numbers of layers, and the tuples of a flattened tree."""
    grads = {1: np.ones(2), ("a", "b"): np.ones(3)}
    assert vegrad.measure(grads).names == ["1", "('a', 'b')"]
    assert_error(lambda: vegrad.norm({(HOSTILE["all"],) * 9: 1}))


# -------------------------------------------------------------------------------------------- files


@names
def test_networks_and_checkpoints(name: str, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "net.safetensors"
    net = vegrad.MLP([2, 3, 1])
    net.save(path)
    config = net.config
    arrays = dict(net.parameters)
    if "\udc80" not in name:  # no file can hold it
        safetensors.save_file(arrays | {name: np.ones(2)}, path, {"vegrad": header(config)})
        assert_error(lambda: vegrad.MLP.load(path))
    for changed in (
        config | {"activation": name},
        config | {name: 1},
        config | {"sizes": [2, name]},
        config | {"dtype": name},
    ):
        safetensors.save_file(arrays, path, {"vegrad": header(changed)})
        assert_error(lambda: vegrad.MLP.load(path))
    safetensors.save_file(arrays, path, {"vegrad": json.dumps({"kind": name})})
    assert_error(lambda: vegrad.MLP.load(path))
    for argument in ("activation", "loss", "init", "norm", "dtype"):
        assert_error(lambda a=argument: vegrad.MLP([2, 1], **{a: name}))
    for argument in ("cell", "loss", "init", "targets"):
        assert_error(lambda a=argument: vegrad.RNN(1, 1, 1, **{a: name}))
    assert_error(lambda: net.parameters[name], KeyError)


def header(config: object) -> str:
    return json.dumps({"kind": "MLP", "config": config})


@names
def test_runs(name: str, tmp_path: Path) -> None:
    log = tmp_path / "run.jsonl"
    plain = name.encode(errors="replace").decode()
    first = {
        "vegrad_run": 1,
        "modules": [name, "b"],
        "floor_log2": -126.0,
        "about": {"model": name, name: name},
    }
    steps = [{"step": n, "loss": 1.0, "norm": 2.0} for n in range(9)]
    sizes = [{"sizes": n, "log2": [1.0, 2.0]} for n in range(9)]
    log.write_text("\n".join(map(json.dumps, [first, *steps, *sizes])) + "\n")
    run = vegrad.read_run(log)
    report = vegrad.diagnose_run(log)
    for text in (str(report), repr(run), report._repr_html_(), report.to_html()):
        assert_plain(text)
    compared = vegrad.compare(log, log, names=(f"a{name}", f"b{name}"))
    for text in (str(compared), compared.to_html()):
        assert_plain(text)
    log.write_text(json.dumps({"vegrad_run": name}) + "\n")
    assert_error(lambda: vegrad.read_run(log))
    table = tmp_path / "metrics.csv"
    table.write_text(f'"{plain}",epoch\n1,2\n3,4\n', newline="")
    assert_error(lambda: vegrad.read_run(table))
    state = tmp_path / "trainer_state.json"
    state.write_text(json.dumps({"log_history": [{"step": 1, name: 2.0}]}))
    assert_error(lambda: vegrad.read_run(state))
    assert_error(lambda: vegrad.History.from_dict({name: 1}))


@names
def test_tables(name: str, tmp_path: Path) -> None:
    path, plain = tmp_path / "data.csv", name.encode(errors="replace").decode()
    quoted = '"' + plain.replace('"', "") + '"'
    for text, target in (
        (f"{quoted},y\n1,2\n", None),
        (f"{quoted},y\n1,2\n", name),
        (f"{quoted},y\n{quoted},2\n", "y"),
        (f"{quoted},{quoted}\n1,2\n", plain.strip()),
        (f"y\n{quoted}\n", "y"),
        (",".join([quoted] * 500) + "\n1\n", "y"),
    ):
        path.write_text(text, newline="")
        assert_error(lambda t=target: vegrad.datasets.load(path, t))
    np.savez(tmp_path / "data.npz", **{re.sub(r"[\0/\udc80]", "", name)[:99]: np.ones(3)})
    assert_error(lambda: vegrad.datasets.load(tmp_path / "data.npz"))
    assert_error(lambda: vegrad.datasets.load(name))


@names
def test_recorded_gradients(name: str) -> None:
    rng = np.random.default_rng(0)
    grads = {f"{name}{n}": 1e-3**n * rng.standard_normal((8, 8)) for n in range(12)}
    found = vegrad.diagnose_gradients(grads)
    for text in (str(found), found._repr_html_(), found.to_html(), repr(found.findings)):
        assert_plain(text)
    assert_error(lambda: vegrad.diagnose_gradients(grads, order=[name]))
    assert_error(lambda: vegrad.diagnose_gradients(grads, parameters={name: np.ones(2)}))


# ---------------------------------------------------------------------------------------- the shell


@names
@pytest.mark.parametrize(
    "words",
    [
        ["NAME"],
        ["explain", "NAME"],
        ["diagnose", "--data", "NAME"],
        ["diagnose", "--activation", "NAME"],
        ["diagnose", "--NAME", "1"],
        ["diagnose", "--depth", "NAME"],
        ["diagnose", "--clip", "NAME"],
        ["train", "--clip", "NAME"],
        ["train", "--truncation", "NAME"],
        ["train", "--plot", "NAME", "--epochs", "1"],
        ["diagnose", "NAME"],
        ["diagnose", "--html", "NAME"],
        ["compare", "NAME", "NAME"],
        ["watch", "NAME", "--once"],
        ["descent", "NAME"],
        ["theory", "NAME"],
    ],
    ids=" ".join,
)
def test_commands(name: str, words: list[str], capsys: Any) -> None:
    try:
        code = main([word.replace("NAME", name.replace("\0", "")) for word in words])
    except SystemExit as error:
        code = error.code
    written = capsys.readouterr()
    assert code not in (0, None)
    assert_plain(written.out + written.err)
    assert len(written.err) <= 2000
    assert written.err.count("\n") <= 20


@pytest.mark.parametrize("key", ["escape", "direction", "surrogate"])
def test_files_that_are_written(key: str, tmp_path: Path, capsys: Any) -> None:
    name = str(tmp_path / f"{HOSTILE[key]}.json").replace("\udc80", "\udcff")
    data = tmp_path / "data.csv"
    data.write_text("a,b,y\n" + "0,1,0\n1,0,1\n" * 8)
    words = ["train", "--data", str(data), "--target", "y", "--epochs", "1", "--history", name]
    for more in ([], ["--json", "--force"]):
        main([*words, *more])
        written = capsys.readouterr()
        assert_plain(written.out + written.err)
