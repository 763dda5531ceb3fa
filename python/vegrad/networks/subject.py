"""Own networks as a subject: what `vegrad.diagnose` and `vegrad.cure` ask of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, cast

import numpy as np

from vegrad.arrays.checks import Array
from vegrad.clipping import GlobalNorm
from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.diagnosis.history import History
from vegrad.flow.data import Penalty
from vegrad.flow.edits import Clip, Edit, LearningRate, ScaleData, ScaleTarget, WeightDecay
from vegrad.flow.reading import Reading
from vegrad.flow.subject import Code, Refusal
from vegrad.networks import reading
from vegrad.networks.editor import NetworkEditor, clone, written_optimizer
from vegrad.networks.mlp import MLP
from vegrad.networks.rows import Rows
from vegrad.networks.trainer import NetworkTrainer, renewed
from vegrad.networks.vocabulary import LayerVocabulary
from vegrad.optim import Adam, AdamW, Lion, Optimizer
from vegrad.treatment.data import ArrayData
from vegrad.treatment.script import Script

Scaling = tuple[Array, Array]
NONE = ArrayData(np.zeros((0, 0)), np.zeros(0))


@dataclass
class NetworkSubject:
    """A `vegrad.MLP`; for a cure with the data and the optimizer that it is trained with."""

    network: MLP
    data: ArrayData = NONE
    optimizer: Optimizer | None = None
    seed: int = 0
    """The seed of new weights, and of the draw of the rows that edits are given."""
    scaling: Scaling | None = None
    """Shift and scale (I,) that the data were put through: (x - shift)/scale."""

    noun = "network"
    early = 0
    axes = "0"
    """Axes of x, over which a column goes."""

    def __post_init__(self) -> None:
        """Raise TypeError if it is no network."""
        if not isinstance(self.network, MLP):
            raise TypeError(f"network must be a vegrad.MLP, not {type(self.network).__name__}")

    @property
    def vocabulary(self) -> LayerVocabulary:
        """The names of layers, parameters and edits."""
        return LayerVocabulary(self.network.depth)

    def read(
        self, x: Any, target: Any, *, resamples: int, seed: int, theory: bool = True
    ) -> Reading:
        """Run the network forward and back on a batch and write down what that tells."""
        found = reading.read(self.network, x, target, resamples=resamples, seed=seed, theory=theory)
        return replace(found, penalty=self.penalty)

    @property
    def penalty(self) -> Penalty | None:
        """The optimizer's weight decay, unless that is none or does not go by the gradient."""
        decay = 0.0
        if self.optimizer is not None and not isinstance(self.optimizer, AdamW | Lion):
            decay = self.optimizer._arguments["weight_decay"]
        return Penalty(decay) if decay > 0 else None

    def copy(self) -> Self:
        """Return a copy, to the bit, with the same data and optimizer."""
        return replace(self, network=clone(self.network))

    def apply(self, edit: Edit, rows: Array | None = None) -> Code | Refusal:
        """Do an edit in place, if its shape allows it; else to another network."""
        match edit:
            case ScaleData():
                return self._scale_data()
            case ScaleTarget():
                return self._scale_target()
            case LearningRate(rate, before):
                factor = rate / (before or self._optimizer.rate())
                self.optimizer = renewed(self._optimizer, factor=factor)
                return Code()
            case WeightDecay(decay):
                self.optimizer = renewed(self._optimizer, weight_decay=decay)
                return Code()
            case Clip(limit):
                clip = GlobalNorm(limit, nonfinite="skip")
                self.optimizer = renewed(self._optimizer, clip=clip)
                return Code()
        editor = self._editor(rows)
        done = editor.apply(edit)
        if not isinstance(done, Refusal):
            self.network = editor.network
        return done

    def _editor(self, rows: Array | None) -> NetworkEditor:
        return NetworkEditor(self.network, self.data.x, rows, self.seed)

    def rows(self) -> Rows:
        """Return the data as a training takes them."""
        return Rows(self.data.x, self.data.target)

    def write(self, other: Self) -> None:
        """Take over the parameters' values of another network of the same shape."""
        for name, array in other.network.parameters.items():
            self.network.parameters[name][...] = array

    # For a cure

    def diagnosed(self, x: Any, target: Any, *, theory: bool) -> Diagnosis:
        """Diagnose it on a batch, without resampling."""
        found = self.read(x, target, resamples=0, seed=0, theory=theory)
        return Diagnosis.of(found, None, NetworkSubject)

    def looking(self, rows: int) -> float:
        """Return what a diagnosis costs: one pass."""
        return float(rows)

    def trainer(
        self, history: History, *, batch_size: int, gauge_every: int, seed: int
    ) -> NetworkTrainer:
        """Begin a training of a copy; nothing in it is drawn at random."""
        network, optimizer = clone(self.network), renewed(self._optimizer)
        return NetworkTrainer(
            network, optimizer, self.rows(), self.data.units, history, batch_size, gauge_every
        )

    def patch(self, words: str, lines: Sequence[str], *, steps: int, batch_size: int) -> str:
        """Write the code from the user's network, x and target to a training of this one."""
        epochs = max(1, round(steps * batch_size / len(self.data)))
        imports = ["import numpy as np"] if any("np." in line for line in lines) else []
        call = (
            "network.fit(",
            "    x,",
            "    target,",
            *(f"    {one}," for one in self._fit_arguments()),
            f"    optimizer={written_optimizer(self._optimizer)},",
            f"    epochs={epochs},",
            f"    batch_size={batch_size},",
            f"    seed={self.seed},",
            ")",
        )
        return "\n".join([*imports, "import vegrad", "", f"# {words}", *lines, *call, ""])

    def _fit_arguments(self) -> list[str]:
        """Return the arguments of `fit` that only some networks take, as a patch writes them."""
        return []

    @property
    def _optimizer(self) -> Optimizer:
        return Adam(1e-3) if self.optimizer is None else self.optimizer

    def _scale_data(self) -> Code | Refusal:
        """Scale the columns by what they are in float64; what is kept is of the data's dtype."""
        x = self.data.x
        if not x.size:
            return Refusal("there are no data to scale")
        script = Script(np=np, x=x.astype(np.float64))
        script.run(
            f"shift = x.mean(axis={self.axes})",
            f"scale = np.where(np.ptp(x, axis={self.axes}) > 0, x.std(axis={self.axes}), 1.0)",
            "x = (x - shift) / scale",
        )
        shift, scale = (cast(Array, script.names[n]).astype(x.dtype) for n in ("shift", "scale"))
        self.scaling = shift, scale
        self.data = replace(self.data, x=(x - shift) / scale)
        return Code(script.lines)

    def _scale_target(self) -> Code | Refusal:
        """Scale the columns by what they are in float64."""
        spread, target = self.data.target_spread(), self.data.target
        if isinstance(spread, Refusal):
            return spread
        script = Script(np=np, target=target.astype(np.float64))
        script.run(
            "target_shift = target.mean(axis=0)",
            "target_scale = np.sqrt(np.mean(np.square(target - target_shift)))",
            "target = (target - target_shift) / target_scale",
        )
        shift, scale = script.names["target_shift"], script.names["target_scale"]
        scaled = cast(Array, script.names["target"]).astype(target.dtype)
        units = cast(Array, shift), float(np.float64(cast(float, scale)))
        self.data = replace(self.data, target=scaled, units=units)
        back = "# in the old units: network.forward(x) * target_scale + target_shift"
        return Code((*script.lines, back))
