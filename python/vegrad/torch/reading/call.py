"""A call of one of PyTorch's functions, and the names by which kinds of functions are told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from vegrad.arrays.cached import cached_property
from vegrad.torch.activations import FUNCTIONS, OTHERS
from vegrad.torch.reading.tensors import is_signal, tensors_in

NORMS = {
    "layer_norm": "layer",
    "rms_norm": "rms",
    "batch_norm": "batch",
    "group_norm": "group",
    "instance_norm": "instance",
}
ATTENTION = {"scaled_dot_product_attention"}
PRODUCTS = {
    *ATTENTION,
    "matmul",
    "bmm",
    "baddbmm",
    "einsum",
    "__matmul__",
    "addmm",
    "mm",
}
SHAPES = {
    "flatten",
    "view",
    "reshape",
    "contiguous",
    "to",
    "clone",
    "__get__",
    "squeeze",
    "unsqueeze",
    "float",
    "double",
}
# What these make has no sizes of its own.
VIEWS = {
    *(SHAPES - {"to", "float", "double"}),
    "__getitem__",
    "__setitem__",
    "as_strided",
    "broadcast_to",
    "chunk",
    "detach",
    "expand",
    "expand_as",
    "movedim",
    "narrow",
    "permute",
    "requires_grad",
    "select",
    "split",
    "swapaxes",
    "t",
    "tensor_split",
    "transpose",
    "type_as",
    "unbind",
    "unflatten",
    "unfold",
    "view_as",
}
# What may return the very tensor that it is given, as it is.
RETURNS = {*VIEWS, "to", "float", "double", "half", "bfloat16", "type", "cpu", "cuda"}
# What is asked of tensors, most often with an answer that is none.
QUESTIONS = {"__get__", "__len__", "dim", "is_complex", "is_floating_point", "numel", "size"}
ADDS = {"add", "__add__", "__radd__", "__iadd__", "add_"}
CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
TRANSPOSED = (*CONVOLUTION[:5], "output_padding", "groups", "dilation")
BATCH_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training")
ACTIVATIONS = FUNCTIONS.keys() | OTHERS


class Call:
    """A function of PyTorch with the arguments that it was called with."""

    def __init__(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        self.function, self.args, self.kwargs = function, args, kwargs
        self.raw: str = getattr(function, "__name__", "")
        """Name of the function, with the underscores of in-place functions."""
        self.name = self.raw if self.raw.startswith("__") else self.raw.rstrip("_")
        """Name of the function without the underscore at the end of in-place functions."""
        self.kind = self.raw.strip("_")
        """Name of the function without any underscores round it."""
        self.tensors = tensors_in((args, kwargs) if kwargs else args)
        """All tensors among the arguments."""

    @cached_property
    def signals(self) -> list[Tensor]:
        """The numbers among the tensors; all, if there are none."""
        return [one for one in self.tensors if is_signal(one)] or self.tensors

    @property
    def source(self) -> object:
        """First argument."""
        return self.args[0] if self.args else self.kwargs.get("input")

    @property
    def adds(self) -> bool:
        """True for the sum of two terms."""
        return self.raw in ADDS and len(self.args) > 1

    def activated(self) -> Tensor | None:
        """Return the values that an activation is about to be applied to; None for others."""
        source = self.source
        if self.name not in ACTIVATIONS or not isinstance(source, Tensor):
            return None
        flags = (*self.args[1:], self.kwargs.get("inplace"))
        inplace = self.raw.endswith("_") or any(one is True for one in flags)
        return source.detach().clone() if inplace else source.detach()
