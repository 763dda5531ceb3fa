"""What vegrad.torch.cure makes of the faulty networks of faulty.py, each patch run as a file.

    python bench/field/cured.py                 every faulty network, then the figures
    python bench/field/cured.py --half even     every second one: even to improve on, odd to check
    python bench/field/cured.py --only REGEX    names that match
    python bench/field/cured.py --drawn 40 --seed 2    networks drawn at random (drawn.py) instead

The cure gets what its user has: the network, the loss, the data, the optimizer, as many steps as
the row's own training, and no goal. Its patch is then run as a file on the network as it was, and a
plain training without vegrad must reach the goal of the data. Where the cause lies in the loop, the
loss or values that are not finite, no change of the network is a cure: there the cause must be
said, and nothing tried.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import vegrad.torch as vt
from drawn import drawn
from faulty import GOALS, Net, build, error, first
from nets import FAULTY
from torch import nn
from vegrad.treatment.beyond import BEYOND

VALUES = {"nonfinite-input", "nonfinite-target"}  # of the data: nothing makes up for them
LOOP = {"clip-too-small"}  # of which cure, that has a loop of its own, sees nothing


def patched(net: Net, patch: str, folder: Path) -> dict[str, Any]:
    """Build a row anew and run a patch on it as a file; return the names that it leaves."""
    model, loss_fn, x, target, make = build(net)
    names = {"model": model, "loss_fn": loss_fn, "x": x, "target": target}
    names["optimizer"] = make(model.parameters())
    file = folder / "patch.py"
    file.write_text(patch, encoding="utf-8")
    exec(compile(file.read_text(encoding="utf-8"), str(file), "exec"), names)
    rate = names["optimizer"].param_groups[0]["lr"]
    names["optimizer"] = make(names["model"].parameters())  # of the parameters that it has now
    for group in names["optimizer"].param_groups:
        group["lr"] = rate
    return names


class Whole(nn.Module):
    """A model beside the inputs that it was trained on and the units that it was trained in."""

    def __init__(self, names: dict[str, Any]) -> None:
        super().__init__()
        self.names = names

    def forward(self, _: Any) -> Any:
        """Return the outputs for all rows in the target's own units."""
        out = self.names["model"](self.names["x"])
        if "target_scale" in self.names:
            out = out * self.names["target_scale"] + self.names["target_shift"]
        return out


def trained(net: Net, names: dict[str, Any], clip: float | None) -> float:
    """Train without vegrad, from the patch on; return the error at the end."""
    generator = torch.Generator().manual_seed(0)
    x, target, optimizer = names["x"], names["target"], names["optimizer"]
    limits = [limit for limit in (clip, net.clip) if limit is not None]
    for _ in range(net.steps):
        index = torch.randperm(len(x), generator=generator)[:32]
        optimizer.zero_grad()
        names["loss_fn"](names["model"](x[index]), target[index]).backward()
        for limit in limits:
            nn.utils.clip_grad_norm_(names["model"].parameters(), limit)
        optimizer.step()
    return error(net, Whole(names))


def cure(net: Net, folder: Path, steps: int) -> dict[str, Any]:
    """Cure a row and judge the cure."""
    model, loss_fn, x, target, make = build(net)
    start = time.perf_counter()
    said: dict[str, Any] = {"name": net.name, "causes": net.causes.split()}
    try:
        found = vt.cure(model, loss_fn, x, target, optimizer=make, steps=steps)
        cause = first(found.before)
        names = patched(net, found.patch, folder)
        left = trained(net, names, found.clip)
    except Exception as problem:  # a crash is a result
        return said | {"how": "CRASH", "words": f"{type(problem).__name__}: {problem}"[:160]}
    said |= {
        "first": cause, "error": left, "goal": GOALS[net.data], "reached": found.reached,
        "wanted": str(found.goal), "cost": found.cost, "words": found.summary,
        "seconds": time.perf_counter() - start, "spared": not found.attempts and not found.proof,
        "attempts": [[one.name, one.change, one.why] for one in found.attempts],
        "about": list(found.about),
    }  # fmt: skip
    by_hand = BEYOND | VALUES | LOOP
    if left <= GOALS[net.data]:
        how = "cured"
    elif by_hand & set(said["causes"]) and said["spared"] and cause in said["causes"]:
        how = "told"
    else:
        how = "BY HAND" if set(said["causes"]) & by_hand else "NOT CURED"
    return said | {"how": how}


def main() -> int:
    parser = argparse.ArgumentParser(description="cures of small faulty networks")
    parser.add_argument("--only", default="")
    parser.add_argument("--half", choices=("even", "odd"))
    parser.add_argument("--drawn", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, help="of the cure, in place of the row's own")
    parser.add_argument("--json", type=Path, help="write all that was said into this file")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    start, step = {"even": (0, 2), "odd": (1, 2), None: (0, 1)}[options.half]
    all_nets = drawn(options.seed, options.drawn) if options.drawn else FAULTY
    nets = [net for net in all_nets[start::step] if re.search(options.only, net.name)]
    rows = list[dict[str, Any]]()
    with TemporaryDirectory() as folder:
        for net in nets:
            rows.append(row := cure(net, Path(folder), options.steps or net.steps))
            figures = ", ".join(
                f"{name} {row[name]:.3g}" for name in ("error", "goal", "cost", "seconds")
                if name in row
            )  # fmt: skip
            words = f"{row['how']} {row['name']}: {row.get('first')}; {figures}; {row['words']}"
            print(words, flush=True)
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    right = sum(row["how"] in ("cured", "told") for row in rows)
    crashes = sum(row["how"] == "CRASH" for row in rows)
    hand = [row for row in rows if row["how"] in ("told", "BY HAND")]
    told = sum(row["how"] == "told" for row in hand)
    print(f"right {right} of {len(rows)}: cured {right - told} of {len(rows) - len(hand)}, "
          f"told what to do by hand {told} of {len(hand)}; crashes {crashes}")  # fmt: skip
    return 0 if right == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
