"""Edits of recurrent networks, as the code that does them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from vegrad.flow.edits import (
    ARCHITECTURE,
    Chrono,
    Edit,
    Initialize,
    Lsuv,
    Orthogonal,
    Redraw,
    SetCell,
    Steady,
)
from vegrad.flow.subject import Refusal
from vegrad.networks.editor import NetworkEditor, changed_arguments
from vegrad.networks.rnn import RNN

SIZES = ("inputs", "hidden", "outputs")
NO_LAYERS = "the network is no chain of layers"


class RecurrentEditor(NetworkEditor):
    """Edits one recurrent network, in place as long as its cell stays."""

    network: RNN  # type: ignore[assignment]

    def do(self, edit: Edit) -> str | Refusal:
        """Do a single edit of values; return the words for it, "" if its own say it all."""
        match edit:
            case Orthogonal(names):
                self._draws()
                for name in names:
                    self._run(
                        f'weight = network.parameters["{name}"]',
                        "for block in np.split(weight, len(weight) // weight.shape[1]):",
                        "    q, r = np.linalg.qr(random.standard_normal(block.shape))",
                        "    block[...] = q * np.sign(np.diag(r))",
                    )
            case Chrono(names, rows, steps, opposite):
                self._draws()
                self._run(f"scales = random.uniform(1.0, {steps - 1.0}, {rows[1] - rows[0]})")
                for name in names:
                    for part, sign in ((rows, ""), (opposite, "-")):
                        if part is not None:
                            value = f"{sign}np.log(scales)" if name == names[0] else "0.0"
                            at = f"[{part[0]}:{part[1]}]"
                            self._run(f'network.parameters["{name}"]{at} = {value}')
            case Steady(names, drive, cell):
                for name in names:
                    at = f'network.parameters["{name}"]'
                    more = f'{drive!r}, cell="{cell}", seed={self.seed}'
                    self._run(f"{at}[...] = vegrad.theory.steadied({at}, {more})")
            case Redraw(names):
                self._run(f"fresh = {written(self._with_seed())}")
                self._each(names, "= fresh.parameters[{name}]")
            case Lsuv():
                return Refusal(NO_LAYERS)
            case _:
                return super().do(edit)
        return ""

    def _draws(self) -> None:
        self._run(f"random = np.random.default_rng({self.seed})")

    def rebuild(self, edits: Sequence[Edit]) -> str | Refusal:
        """Make another network by one call; return the words."""
        config, said = self._with_seed(), list[str]()
        for edit in edits:
            match edit:
                case SetCell(name, steps):
                    biases = {"init": "default", "forget_bias": 1.0, "time_scale": None}
                    with_ = "a bias of 1 at the gate that carries"
                    if steps:
                        biases = {"init": "chrono", "forget_bias": None, "time_scale": steps}
                        with_ = f"time scales up to {steps} steps (chrono)"
                    config |= {"cell": name, "input_variance": None, **biases}
                    said.append(f"use {name.upper()} cells, with {with_}")
                case Initialize("default"):
                    config |= {"init": "default", "time_scale": None, "input_variance": None}
                    said.append("draw all weights again, as by default")
                case Initialize(scheme):
                    return Refusal(f"a recurrent network has no initialization {scheme}")
                case _ if isinstance(edit, ARCHITECTURE):
                    return Refusal(NO_LAYERS)
                case _:
                    return Refusal(f"{type(edit).__name__} cannot be done with another network")
        old = self.network
        self._run(f"network = {written(config)}")
        new = cast(RNN, self.script.names["network"])
        if new.config["cell"] == old.config["cell"]:
            for name, array in new.parameters.items():
                old.parameters[name][...] = array
            old.config.update(new.config)
            self.script.names["network"] = new = old
        self.network = new
        return ", ".join(said)


def written(config: Mapping[str, object]) -> str:
    """Write the call that makes a network with this config."""
    sizes = ", ".join(str(config[name]) for name in SIZES)
    more = changed_arguments(RNN, config, SIZES)
    return f"vegrad.RNN({sizes}{', ' if more else ''}{more})"
