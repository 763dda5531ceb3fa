"""The base class of vegrad's own networks, whose parameters and passes live in the core."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import deepcopy
from copyreg import __newobj__  # type: ignore[attr-defined]
from os import PathLike
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from vegrad._core import Network as CoreNetwork
from vegrad._core import Recurrent
from vegrad.arrays.checks import Array, FloatArray, did_you_mean
from vegrad.arrays.files import complaining_of, load_tensors, save_tensors
from vegrad.arrays.shown import shown, some, visible
from vegrad.datasets.preparation import Preparation
from vegrad.flow.finding import Finding
from vegrad.flow.time_flow import TimeFlow
from vegrad.networks.distributed import Group
from vegrad.networks.rows import Batch, Rows
from vegrad.optim import Trainer
from vegrad.reports.flow import Flow

Config = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]


class _Measured:
    """A pass that has measured a flow, which is here once somebody has asked for it."""

    __slots__ = ("flow",)

    def __init__(self) -> None:
        self.flow: Flow | TimeFlow | None = None


class Examined(NamedTuple):
    """The outputs and the sizes of δ that a backward pass leaves for a diagnosis."""

    loss: float
    outputs: Array
    """(B, O)."""
    row_squares: FloatArray
    """Σ δ² of each layer and row, times 4 to minus the layer's exponent: (L, B)."""
    exponents: FloatArray
    """Of each layer, so that no δ is too small or too large: (L,)."""


class Network:
    """The parameters, gradients, flow and files that every own network has.

    A subclass sets `kind`, checks its arguments into `config`, calls `_build` and then fills the
    parameters. It implements the methods that raise NotImplementedError here, has `forward`, `loss`
    and `backward` for the shapes that it takes, and a `fit` that ends in networks/training.py.
    """

    kind: ClassVar[str]
    """The name under which files hold networks of this class."""
    few_tell: ClassVar[bool] = True
    """True if a few rows show whatever is wrong; what targets depend on takes many."""
    config: Config
    """The arguments of the constructor, as plain JSON types."""
    preparation: Preparation | None = None
    """What was done to the table that it has learnt from; None if it was none."""
    _core: CoreNetwork | Recurrent
    _measured: _Measured | None

    def _new_core(self) -> CoreNetwork | Recurrent:
        """Return the core's network that `config` describes, its parameters zero."""
        raise NotImplementedError

    @classmethod
    def _described(cls, config: Config) -> tuple[Config, Shapes]:
        """Return a checked copy of a config read from a file, and the parameters' shapes."""
        raise NotImplementedError

    def checked(self, x: object, target: object) -> tuple[Array, Array]:
        """Return x and target as contiguous arrays that the core takes, copied only if needed."""
        raise NotImplementedError

    def forward(self, x: object) -> Array:
        """Return the output for the rows of x."""
        raise NotImplementedError

    def backward(self, x: object, target: object) -> float:
        """Run a forward and a backward pass; return the loss and fill gradients and flow."""
        raise NotImplementedError

    def examined(self, x: object, target: object) -> Examined:
        """Run `backward`, which is told besides what a diagnosis needs."""
        raise NotImplementedError

    def _build(self) -> None:
        """Make the core's network for `config`; its parameters are zero."""
        self._dtype = np.dtype(self.config["dtype"])
        self._core = self._new_core()
        self._parameters = MappingProxyType(_Named(self._core.parameters()))
        self._gradients = MappingProxyType(_Named(self._core.gradients()))
        self.note_pass(flow=False)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the network to a safetensors file, which appears whole or not at all.

        The arrays are `parameters`; the arguments of the constructor are in the file's metadata,
        and `preparation` if there is one.
        """
        about: dict[str, object] = {"kind": self.kind, "config": self.config}
        if self.preparation is not None:
            about["preparation"] = self.preparation.packed()
        save_tensors(path, dict(self._parameters), about)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Return the network that `save` wrote, the same to the bit.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if it is truncated, or holds no network of this class.
        """
        arrays, about = load_tensors(path, cls.kind)
        network = cls.__new__(cls)
        with complaining_of(path):
            network.config, wanted = cls._described(about["config"])
            got = {name: array.shape for name, array in arrays.items()}
            check_shapes(wanted, got)
            dtype = network.config["dtype"]
            for name, array in arrays.items():
                if array.dtype != dtype:
                    raise ValueError(f"{visible(name)} must be {dtype}, not {array.dtype}")
            if about.get("preparation") is not None:
                network.preparation = Preparation.unpacked(about["preparation"])
            network._build()
        for name, array in arrays.items():
            network._parameters[name][...] = array
        return network

    def __copy__(self) -> Self:
        return deepcopy(self)

    def __reduce__(self) -> tuple[object, ...]:
        return __newobj__, (type(self),), (self.config, dict(self._parameters), self.preparation)

    def __setstate__(
        self,
        state: tuple[Config, dict[str, Array]]
        | tuple[Config, dict[str, Array], Preparation | None],
    ) -> None:
        self.config, parameters = state[:2]
        self.preparation = state[2] if len(state) > 2 else None  # earlier versions have written two
        self._build()
        for name, array in parameters.items():
            self._parameters[name][...] = array

    @property
    def parameters(self) -> Mapping[str, Array]:
        """Views of the network's memory, by name. Writing to them changes the network."""
        return self._parameters

    @property
    def gradients(self) -> Mapping[str, Array]:
        """Views of the last `backward`'s gradients, named and shaped as the parameters.

        They are the true values as far as the dtype can hold them: 0 below its normal range, inf
        above its largest number.
        """
        return self._gradients

    @property
    def flow(self) -> Flow | TimeFlow:
        """The gradient flow that the last `backward` measured.

        Raises:
            RuntimeError: if there was no `backward` yet, or the last one had `flow=False` or was
                truncated.
        """
        measured = self._measured  # looked at once: another thread may begin a pass
        if measured is None:
            raise RuntimeError(
                "no flow yet: call backward(x, target) first, with flow=True and no truncation"
            )
        if measured.flow is None:
            measured.flow = self._new_flow()
        return measured.flow

    def note_pass(self, *, flow: bool) -> None:
        """Take notice that the core has made a backward pass, with or without a flow.

        The flow is fetched from the core when it is first asked for.
        """
        self._measured = _Measured() if flow else None

    def _new_flow(self) -> Flow | TimeFlow:
        """Return the flow that the core has measured."""
        raise NotImplementedError

    # For a training -------------------------------------------------------------------------------

    @property
    def weights(self) -> dict[str, Array]:
        """The parameters without the biases."""
        return {name: array for name, array in self._parameters.items() if "weight" in name}

    def weight_gradients_log2(self) -> FloatArray:
        """Return log2 of the norms of the gradients of `weights` in the last pass."""
        raise NotImplementedError

    def trainer(self, rows: Rows, batch_size: int, group: Group | None = None) -> Trainer:
        """Return what takes steps on batches of these rows, which were checked.

        A group of processes takes each step together.
        """
        raise NotImplementedError

    def loss_of(self, batch: Batch) -> float:
        """Return the loss of a batch that was checked."""
        raise NotImplementedError

    def compared(self, batch: Batch) -> tuple[Array, Array]:
        """Return outputs (N, O) beside the targets that the loss compares them with."""
        raise NotImplementedError

    def is_usual(self, batch: Batch, constant: float) -> bool:
        """Return True if one pass shows nothing that comes near to a limit of any rule.

        `constant` is the loss of the best output that is the same for all rows.
        """
        raise NotImplementedError

    def judged(self, batch: Batch, resamples: int) -> tuple[Finding, ...]:
        """Judge the network as it is by one pass over these rows, and `resamples` more."""
        raise NotImplementedError

    def forgotten(self, batch: Batch, first: Network | None) -> tuple[Finding, ...]:
        """Return what it forgets, though its target needs it, if it learns nothing.

        `first` is the network as it was before the training.
        """
        return ()


class _Named(dict[str, Array]):
    """Arrays by the names of their parameters, which suggests the nearest of another name."""

    def __missing__(self, name: object) -> Array:
        hint = did_you_mean(str(name), self)
        raise KeyError(f"no parameter {visible(str(name))}{hint}; there are {some(self, 4)}")


def check_shapes(wanted: Shapes, got: Shapes) -> None:
    """Raise ValueError unless a file has parameters of the names and shapes that are wanted."""
    for name in {**wanted, **got}:
        if (want := wanted.get(name)) != (have := got.get(name)):
            raise ValueError(f"{visible(name)} must be {_shape(want)}, not {_shape(have)}")


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else f"of shape {shape}"


def check_name(argument: str, name: str, known: Collection[str]) -> str:
    """Return `name` if it is one of those known, else raise with their list."""
    names = some(known, 20)
    if not isinstance(name, str):
        raise TypeError(f"{argument} must be one of {names}, not {type(name).__name__}")
    if name not in known:
        hint = did_you_mean(name, known)
        raise ValueError(f"{argument} must be one of {names}, not {shown(str(name))}{hint}")
    return str(name)


def check_network(network: object) -> None:
    """Raise TypeError unless it is one of vegrad's own networks, or made like one."""
    is_module = any(one.__module__ == "torch.nn.modules.module" for one in type(network).__mro__)
    if hasattr(network, "config") and not is_module:
        return
    hint = ": of a torch.nn.Module vegrad.torch has the same functions" if is_module else ""
    got = type(network).__name__
    raise TypeError(f"network must be a vegrad.MLP or a vegrad.RNN, not {got}{hint}")


def check_flag(argument: str, value: bool) -> bool:
    """Return `value` if it is True or False, of Python or NumPy."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{argument} must be True or False, not {shown(value)}")
    return bool(value)


def check_dtype(dtype: npt.DTypeLike) -> str:
    """Return the name of the dtype if it is float32 or float64."""
    try:
        name = np.dtype(dtype).name
    except TypeError as error:
        raise TypeError(f"dtype must be float32 or float64, not {shown(dtype)}") from error
    if name not in ("float32", "float64"):
        raise TypeError(f"dtype must be float32 or float64, not {visible(name)}")
    return name
