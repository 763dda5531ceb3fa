"""The compiled module: kernels and networks over checked, contiguous arrays."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

_Array = npt.NDArray[Any]
_Tensor = TypeVar("_Tensor")

__version__: str
ACTIVATIONS: tuple[str, ...]
CELLS: tuple[str, ...]
KEPT: tuple[str, ...]
LOSSES: tuple[str, ...]
NORMS: tuple[str, ...]

def isa() -> str: ...
def csv_numbers(
    data: bytes, start: int, separator: str, decimal: str, place: list[int], line: int
) -> tuple[
    npt.NDArray[np.float64],
    npt.NDArray[np.int64],
    list[tuple[int, int, int]],
    tuple[int, int],
    int,
]: ...
def csv_words(data: bytes, start: int, separator: str, chosen: list[int]) -> list[list[str]]: ...
def visible(text: str, most: int = 80, lines: bool = False) -> str: ...
def isas() -> tuple[str, ...]: ...
def use_isa(name: str) -> None: ...
def has_matrix_unit() -> bool: ...
def is_plain() -> bool: ...
def matrix_unit() -> bool: ...
def use_matrix_unit(on: bool) -> None: ...
def num_threads() -> int: ...
def set_num_threads(n: int) -> None: ...
def share_everything(on: bool) -> None: ...
def borrow_threads(parallel: int, most: int, number: int) -> None: ...
def activate(name: str, z: _Array, kept: bool = False) -> tuple[_Array, _Array]: ...
def matmul(a: _Array, b: _Array, kind: str) -> _Array: ...
def pack_cell(cell: str, recurrent: _Array, back: bool) -> _Array: ...
def cell_forward(cell: str, hidden: int, arrays: dict[str, _Array | None]) -> None: ...
def cell_backward(
    cell: str, hidden: int, arrays: dict[str, _Array | None], fresh: bool
) -> None: ...
def norm(buffers: Any, ord: float) -> float: ...
def norms(buffers: Any, ord: float) -> npt.NDArray[np.float64]: ...
def measure(
    buffers: Any, histogram: bool
) -> tuple[list[str], list[dict[str, Any]], dict[str, Any]]: ...
def names(grads: object) -> list[str]: ...
def clip(
    rule: str,
    grads: Any,
    limit: Any,
    ord: float = 2.0,
    nonfinite: str = "raise",
    params: Any = None,
    eps: float = 0.0,
    after: bool = True,
) -> Clipped: ...
def clip_gradients(
    parameters: list[Any], limit: float, ord: float, nonfinite: str, slack: float
) -> tuple[list[Any], Clipped]: ...
def unmoved(
    tensors: list[Any], holders: list[tuple[dict[str, Any], str]], places: bytes
) -> bytes | None: ...
def versions(tensors: list[Any]) -> bytes: ...
def unhooked(tensors: list[Any], type: type) -> bool: ...
def gradients(tensors: list[_Tensor]) -> list[_Tensor | None]: ...
def nones(entries: Sequence[object]) -> int: ...
def same_objects(one: Sequence[object], other: Sequence[object]) -> bool: ...
def set_gradients(tensors: list[Any], gradients: list[Any]) -> int: ...

class NonFiniteGradientError(ValueError):
    name: str | int | None
    index: tuple[int, ...]

class Clipped:
    @property
    def norm(self) -> float: ...
    @property
    def norm_after(self) -> float: ...
    @property
    def norms(self) -> npt.NDArray[np.float64]: ...
    @property
    def coefficient(self) -> float: ...
    @property
    def clipped(self) -> bool: ...
    @property
    def skipped(self) -> bool: ...
    @property
    def nonfinite(self) -> int: ...
    @property
    def dtypes(self) -> int: ...

class Optimizer:
    def __init__(
        self,
        kind: str,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        beta1: float = 0.0,
        beta2: float = 0.0,
        eps: float = 0.0,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        amsgrad: bool = False,
        maximize: bool = False,
    ) -> None: ...
    def step(
        self,
        params: Any,
        grads: Any,
        rate: float,
        rule: str,
        limit: Any,
        ord: float,
        nonfinite: str,
        eps: float,
        groups: Sequence[tuple[int, float, Optimizer]] | None = None,
    ) -> Clipped: ...
    def state(self) -> dict[str, dict[str, Any]]: ...
    def load(self, state: dict[str, Any]) -> None: ...

class Network:
    def __init__(
        self,
        sizes: Sequence[int],
        activation: str,
        output: str,
        loss: str,
        norm: str | None,
        residual: bool,
        dtype: str,
    ) -> None: ...
    def parameters(self) -> dict[str, _Array]: ...
    def gradients(self) -> dict[str, _Array]: ...

    # These do nothing and return None if an argument is not an array of the kind that they need.
    def forward(self, x: Any) -> _Array | None: ...
    def loss(self, x: Any, target: Any) -> float | None: ...
    def backward(self, x: Any, target: Any, flow: bool, layers: int) -> float | None: ...
    def examine(
        self, x: Any, target: Any
    ) -> tuple[float, _Array, npt.NDArray[np.float64], npt.NDArray[np.float64]] | None: ...
    def forward_kept(self, x: Any) -> tuple[_Array, int] | None: ...
    def backward_kept(
        self, number: int, x: Any, gradient: Any, delta: bool, gradients: Any
    ) -> _Array | None: ...
    def flow(self) -> dict[str, npt.NDArray[np.float64]]: ...
    def workspace_bytes(self, batch: int) -> int: ...

class Recurrent:
    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        cell: str,
        layers: int,
        targets: str,
        loss: str,
        dtype: str,
    ) -> None: ...
    def parameters(self) -> dict[str, _Array]: ...
    def gradients(self) -> dict[str, _Array]: ...

    # These do nothing and return None if an argument is not an array of the kind that they need.
    def forward(self, x: object, lengths: object, state: object) -> _Array | None: ...
    def loss(self, x: object, target: object, lengths: object, state: object) -> float | None: ...
    def backward(
        self,
        x: object,
        target: object,
        lengths: object,
        state: object,
        window: tuple[int, int] | None,
        factors: object,
        flow: bool,
        losses_from: int = 0,
    ) -> float | None: ...
    def state(self) -> tuple[_Array, ...]: ...
    def flow(self) -> dict[str, npt.NDArray[np.float64]]: ...
    def workspace_bytes(self, batch: int, steps: int, window: int) -> int: ...

class RecurrentLayer:
    def __init__(self, inputs: int, hidden: int, cell: str, dtype: str) -> None: ...

    # x (B, T, I) or (T, B, I), the output in the same order. Biases may be None, as may what starts
    # at zero. What is kept has all that the way back needs, also more than once.
    def forward(
        self,
        x: _Array,
        lengths: npt.NDArray[np.int64] | None,
        h0: _Array | None,
        c0: _Array | None,
        w_ih: _Array,
        w_hh: _Array,
        b_ih: _Array | None,
        b_hh: _Array | None,
        time_major: bool,
        reverse: bool,
        keep: bool,
    ) -> tuple[_Array, _Array, _Array | None, object]: ...
    # Of x, h0, c0, w_ih, w_hh, b_ih, b_hh.
    def backward(
        self,
        kept: object,
        d_out: _Array | None,
        d_h: _Array | None,
        d_c: _Array | None,
        need_dx: bool,
    ) -> tuple[_Array | None, _Array, _Array | None, _Array, _Array, _Array, _Array]: ...

class Watch:
    on: bool
    plain: bool
    seen: bool
    last: int
    def __init__(
        self,
        tensor: type,
        is_grad_enabled: Callable[[], bool],
        hooks_type: Callable[[], Any],
        state: Any,
        modules: int,
    ) -> None: ...
    @property
    def squares(self) -> npt.NDArray[np.float64]: ...
    @property
    def counts(self) -> npt.NDArray[np.float64]: ...
    @property
    def deltas(self) -> npt.NDArray[np.float64]: ...
    def clear(self) -> None: ...
    def record(self, parameters: list[Any]) -> tuple[float, bytes] | None: ...
    def forward_hook(
        self, place: int, module: Any, back: Any, slowly: Callable[[Any, Any, Any], None]
    ) -> Callable[[Any, Any, Any], None]: ...
    def backward_hook(self, place: int, slowly: Callable[[Any], None]) -> Callable[[Any], None]: ...

class Trainer:
    def __init__(
        self,
        network: Network | Recurrent,
        x: _Array,
        target: _Array,
        batch_size: int,
        lengths: npt.NDArray[np.int64] | None = None,
        window: tuple[int, int] | None = None,
    ) -> None: ...
    @property
    def done(self) -> int: ...
    @property
    def taken(self) -> int: ...
    @property
    def clipped(self) -> Clipped: ...
    def run(
        self,
        optimizer: Optimizer,
        order: npt.NDArray[np.int64],
        rates: npt.NDArray[np.float64],
        records: npt.NDArray[np.float64],
        seconds: float,
        gauge: tuple[int, int],
        rule: str,
        limit: Any,
        ord: float,
        nonfinite: str,
        eps: float,
    ) -> None: ...
