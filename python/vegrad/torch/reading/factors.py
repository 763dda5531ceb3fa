"""Tell inputs that only multiply what layers made, as masks and adjacency matrices do.

Such an input is no way by which data come to the layers above, nor a skip connection: no more than
if it were an attribute of the model. An input that a layer has taken before is data, wherever it is
multiplied with something again, as the inputs of a cross network or behind a gate are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vegrad.flow.reading import MAPS
from vegrad.flow.ways import RECURRENT
from vegrad.torch.reading.call import ATTENTION, PRODUCTS, Call
from vegrad.torch.reading.tensors import ByTensor, is_signal

ATTENDS = {*ATTENTION, "multi_head_attention_forward"}
MULTIPLIES = {
    *(PRODUCTS - ATTENTION),
    *("mul", "multiply", "__mul__", "__rmul__", "__imul__"),
    *("div", "divide", "true_divide", "__truediv__", "__itruediv__", "__rmatmul__"),
    *("mv", "spmm", "sparse_mm", "_sparse_mm", "addcmul"),
}
NUMBERED = {"embedding", "embedding_bag"}  # which take indices as data
TAKES = {*MAPS, *RECURRENT, *PRODUCTS, *ATTENDS, *NUMBERED}


class Factors:
    """Follows a forward pass and knows which inputs are data."""

    def __init__(self) -> None:
        self._sources: ByTensor[frozenset[int]] = ByTensor()  # of what no layer has taken yet
        self._layered: ByTensor[bool] = ByTensor()
        self._data: set[int] = set()

    def begin(self, inputs: Sequence[Tensor]) -> None:
        """Number the tensors that the model is given."""
        for number, one in enumerate(inputs):
            self._sources[one] = frozenset([number])

    def of(self, call: Call) -> list[Tensor]:
        """Return what in a call only multiplies what layers made, or says where, as indices do.

        To be asked before the call runs.
        """
        if call.name in NUMBERED or not any(map(self._layered.get, call.tensors)):
            return []
        kept = set[int]()
        if call.name in ATTENDS:  # masks are factors, keys and values are not
            named = (call.kwargs.get(name) for name in ("query", "key", "value"))
            kept = {id(one) for one in (*call.args[:3], *named)}
        multiplies = call.name in MULTIPLIES or call.name in ATTENDS
        found = []
        for one in call.tensors:
            sources = self._pure(one)
            if sources is None or id(one) in kept:
                continue
            if not is_signal(one) or (multiplies and sources.isdisjoint(self._data)):
                found.append(one)
        return found

    def _pure(self, tensor: Tensor) -> frozenset[int] | None:
        """Return the inputs that a tensor is made of; None if layers made it, or no input."""
        return None if self._layered.get(tensor) else self._sources.get(tensor)

    def made(self, call: Call, made: Sequence[Tensor], mapped: bool) -> None:
        """Note the results of a call; `mapped` if a parameter takes part in it."""
        name = call.name
        takes = mapped and (name in TAKES or name.endswith("_cell"))
        given = call.tensors if name in NUMBERED else call.signals
        pure = [found for one in given if (found := self._pure(one)) is not None]
        if takes:
            self._data.update(*pure)
        if takes or any(map(self._layered.get, given)):
            for one in made:
                self._layered[one] = True
        elif pure:
            mixed = name in MULTIPLIES and len(set(pure)) > 1  # which of them are data is open
            sources = frozenset[int]() if mixed else frozenset[int]().union(*pure)
            for one in made:
                self._sources[one] = frozenset() if one.dtype is torch.bool else sources
