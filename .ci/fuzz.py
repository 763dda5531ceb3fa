"""Damage files at random and read them: each must load, or be refused with a ValueError or OSError.

    python .ci/fuzz.py                    30 seconds, from a new seed
    python .ci/fuzz.py --seed 7           the same files as another run of seed 7
    python .ci/fuzz.py --seconds 600      longer

The files are saved networks, checkpoints of a training, and datasets as .csv and .npz. Any other
exception ends the run: the damaged file is kept, and its path and the seed are printed.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import vegrad
from vegrad import datasets

from tests.arrays.test_files import CONFIGS, make

SIZES, ROWS = [3, 4, 2], 12
VALUES = (0, 1, 0x22, 0x2C, 0x2D, 0x30, 0x39, 0x5B, 0x7B, 0x7D, 0x7F, 0x80, 0xFF)  # often special


def fit(network: vegrad.MLP, **options: Any) -> None:
    """Train for an epoch on fixed data."""
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((ROWS, SIZES[0])), rng.standard_normal((ROWS, SIZES[-1]))
    options |= {"epochs": 1, "batch_size": 4, "progress": False}
    network.fit(x, target, optimizer=vegrad.Adam(0.01), **options)


def resume(path: Path) -> None:
    """Resume a training from a checkpoint."""
    fit(vegrad.MLP(SIZES, seed=0), resume=path)


def originals(folder: Path) -> list[tuple[Path, Callable[[Path], object]]]:
    """Write undamaged files; return each with the function that reads it."""
    found: list[tuple[Path, Callable[[Path], object]]] = []
    for number, config in enumerate(CONFIGS):
        path = folder / f"network{number}.safetensors"
        make(config).save(path)
        found.append((path, vegrad.MLP.load))
    path = folder / "checkpoint.safetensors"
    fit(vegrad.MLP(SIZES, seed=0), checkpoint=path)
    found.append((path, resume))
    path = folder / "numbers.csv"
    path.write_text("a,b,y\n1,2,3\n4,NA,6\n-7e3,8.5,9\n", encoding="utf-8")
    found.append((path, partial(datasets.load, target_column="y")))
    path = folder / "labels.csv"
    path.write_text('a;"b c";kind\n1;2;red\n4;;blue\n7;8;red\n', encoding="utf-8")
    found.append((path, partial(datasets.load, target_column="kind")))
    path = folder / "arrays.npz"
    np.savez(path, x=np.arange(12.0).reshape(4, 3), y=np.array([0, 1, 1, 0]))
    found.append((path, datasets.load))
    return found


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Change, insert, remove, repeat or cut off some bytes, mostly near the start."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if not data:
            break
        at = int(len(data) * rng.random() ** rng.choice((1, 4)))
        size = rng.choice((1, 1, 2, 8, 64))
        kind = rng.randrange(6)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.choice(VALUES)
        elif kind == 2:
            data[at:at] = bytes(rng.choice(VALUES) for _ in range(size))
        elif kind == 3:
            del data[at : at + size]
        elif kind == 4:
            data[at:at] = data[at : at + size]
        else:
            del data[at:]
    return bytes(data)


def main() -> int:
    """Run until the seconds are over, or a file is neither read nor refused."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30, help="length of the run (30)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    options = parser.parse_args()
    rng, counts = random.Random(options.seed), {"read": 0, "refused": 0}
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        files = originals(Path(folder))
        contents = [path.read_bytes() for path, _ in files]
        for path, read in files:
            read(path)
        end = time.monotonic() + options.seconds
        while time.monotonic() < end:
            place = rng.randrange(len(files))
            (original, read), content = files[place], damaged(contents[place], rng)
            path = original.with_stem("damaged")
            path.write_bytes(content)
            try:
                read(path)
                counts["read"] += 1
            except (ValueError, OSError):  # what the readers document
                counts["refused"] += 1
            except Exception:
                traceback.print_exc()
                kept = Path(tempfile.gettempdir()) / f"vegrad-fuzz-{options.seed}{path.suffix}"
                kept.write_bytes(content)
                print(f"seed {options.seed}: {original.name}, damaged, is kept as {kept}")
                return 1
    print(f"seed {options.seed}: {counts['read']} files read, {counts['refused']} refused")
    return 0


if __name__ == "__main__":
    sys.exit(main())
