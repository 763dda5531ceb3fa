"""Files that cannot be written to their end: each is named, and none is left half written.

A limit to the size of files stands for a full disk: the first write to any file fails, as the
system reports it. `tests/cli/test_train_interrupts.py` has what a command says of it.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from vegrad.cli import main

WRITES = """
import json, os, resource, signal, warnings
import numpy as np
import vegrad
from vegrad import theory

rng = np.random.default_rng(0)
x, y, sequences = rng.random((64, 4)), rng.random((64, 1)), rng.random((4, 9, 3))
net, rnn = vegrad.MLP([4, 8, 1]), vegrad.RNN(3, 4, 1)
settings = dict(optimizer=vegrad.SGD(), batch_size=8, epochs=1, progress=False)
history = net.fit(x, y, **settings)
found, cut = vegrad.diagnose(net, x, y), vegrad.truncation(rnn, sequences, y[:4])
both = vegrad.compare(found, found)
phases = dict(depth=2, width=4, draws=1)
seen = theory.phase_map("tanh", (1.0, 2.0), (0.0, 0.1), **phases)
calls = {
    "a.json": history.save,
    "a.csv": history.save,
    "net": net.save,
    "rnn": rnn.save,
    "checkpoint": lambda path: net.fit(x, y, **settings, checkpoint=path),
    "found.html": found.to_html,
    "both.html": both.to_html,
    "found.png": found.plot,
    "found.svg": found.plot,
    "found.pdf": found.plot,
    "history.pdf": history.plot,
    "both.pdf": both.plot,
    "cut.pdf": cut.plot,
    "phases.pdf": seen.plot,
    "sweep": lambda path: theory.phase_map("tanh", 1.0, file=path, **phases),
}
for name in calls:
    if name != "sweep":
        with open(name, "w") as old:
            old.write("old")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
said = {}
for name, write in calls.items():
    try:
        write(name)
        said[name] = "written"
    except Exception as error:
        named = [getattr(error, key, None) for key in ("errno", "filename")]
        said[name] = [type(error).__name__, *named]
os.write(1, json.dumps(said).encode())
"""


@pytest.mark.skipif(os.name != "posix", reason="there are no limits to files")
def test_everything_that_is_written(tmp_path: Path) -> None:
    """The file is named, what was there stays, and no temporary file does."""
    pytest.importorskip("matplotlib")
    command = [sys.executable, "-W", "ignore", "-c", WRITES]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    said = json.loads(done.stdout)
    assert said == {name: ["OSError", errno.EFBIG, name] for name in said}
    left = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert left == {name: "" if name == "sweep" else "old" for name in said}


full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")


@full
@pytest.mark.parametrize("option", ["--save", "--checkpoint"])
def test_a_device_that_is_full(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    words = ["train", "--data", "wine", "--epochs", "1", "-q", "--out", str(tmp_path)]
    assert main([*words, option, "/dev/full"]) == 4
    assert "/dev/full: No space left on device" in capsys.readouterr().err


@full
@pytest.mark.parametrize("words", [["theory"], ["explain"], ["diagnose", "--data", "wine"]])
def test_a_full_disk_behind_the_standard_output(words: list[str]) -> None:
    if "wine" in words:
        pytest.importorskip("sklearn")
    code = f"import sys\nfrom vegrad.cli import main\nsys.exit(main({words}))"
    with open("/dev/full", "wb") as disk:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, stdout=disk, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 4
    assert done.stderr == b"vegrad: error: standard output: No space left on device\n"
