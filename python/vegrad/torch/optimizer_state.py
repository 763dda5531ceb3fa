"""The states of vegrad's torch optimizers: kept in the core, shown as PyTorch's tensors.

While a training runs, momenta and averages lie in `_core.Optimizer`, where the step finds them
without a Python object for each. Reading `optimizer.state` (as a state_dict, a copy or a pickle
does) converts them to PyTorch's tensors, which may then be changed; the next step moves them back
into the core. So states go both ways between these classes and PyTorch's. The mapping
`optimizer.state` may be kept: it converts them whenever it is looked at.
What it gives for a parameter is as of then: after the next step it has to be asked again.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import update_wrapper
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from vegrad import _core
from vegrad.clipping import Clipped, Rule

State: TypeAlias = dict[str, Any]


class Shown(defaultdict[Tensor, State]):
    """States by parameter, which an optimizer takes out of the core when they are looked at.

    Copies and pickles are defaultdicts that stand alone.
    """

    def __init__(self, owner: weakref.ref[CoreState], states: State) -> None:
        self._owner = owner
        super().__init__(dict, states)

    def _look(self) -> None:
        owner = self._owner()
        if owner is not None:
            owner._move_out()

    def copy(self) -> defaultdict[Tensor, State]:  # type: ignore[override]
        """Return the states as they are now."""
        self._look()
        return defaultdict(dict, self)

    __copy__ = copy  # type: ignore[assignment]

    def __or__(self, other: State) -> State:  # type: ignore[override]
        return self.copy() | other

    def __ror__(self, other: State) -> State:  # type: ignore[override]
        return other | self.copy()

    def __reduce__(self) -> tuple[object, ...]:
        return defaultdict, (dict, dict(self.copy()))


def _looking(name: str) -> Callable[..., object]:
    """Return a dictionary's method that first takes the states out of the core."""
    plain = getattr(defaultdict, name)

    def method(self: Shown, *arguments: object, **more: object) -> object:
        self._look()
        return plain(self, *arguments, **more)

    return update_wrapper(method, plain)


for _name in (
    *("__getitem__", "__setitem__", "__delitem__", "__contains__", "__iter__", "__reversed__"),
    *("__len__", "__eq__", "__ne__", "__ior__", "__repr__"),
    *("get", "keys", "values", "items", "pop", "popitem", "setdefault", "update", "clear"),
):
    setattr(Shown, _name, _looking(_name))


class CoreState(torch.optim.Optimizer):
    """A torch optimizer whose states lie in the core between steps."""

    _kind: ClassVar[str]
    """The core's name of the optimizer."""
    _names: ClassVar[dict[str, str]]
    """The core's names of what is kept of a parameter, by PyTorch's names."""

    _params: list[Tensor]
    """The parameters of all groups, in the order in which the core knows them."""
    _stepper: _core.Optimizer
    _shown: State
    """The states that are not in the core, by parameter."""
    _in_core: bool
    """True while the states are in the core, False while all are in `_shown`."""
    _foreign: frozenset[int]
    """Positions in `_params` of those that PyTorch steps; their states stay in `_shown`."""
    _dtypes: list[torch.dtype]
    """The parameters' dtypes when the states were moved into the core."""

    clip: Rule | None = None
    """A rule of vegrad.clipping, for the gradients of all groups together."""
    clipped: Clipped | None = None
    """The clip's report on the last step: norms, and what was changed."""

    def __init__(
        self, params: ParamsT, *arguments: Any, clip: Rule | None = None, **options: Any
    ) -> None:
        if clip is not None and not isinstance(clip, Rule):
            raise TypeError(
                "clip must be a rule of vegrad.clipping, as GlobalNorm(1.0), or None, not "
                f"{type(clip).__name__}"
            )
        self._renew()
        super().__init__(params, *arguments, **options)
        self.clip = clip
        self._step_supports_amp_scaling = False  # a GradScaler unscales, also with fused=True

    def _renew(self) -> None:
        """Begin with a fresh core, which knows no parameter."""
        self._params, self._stepper = [], _core.Optimizer(kind=self._kind)
        self._in_core, self._foreign, self._dtypes = False, frozenset(), []

    @property
    def state(self) -> State:
        """The state of each parameter, as PyTorch's optimizers keep it.

        The mapping may be kept. The dictionary of one parameter in it is that of a moment: the next
        step leaves it as it is.
        """
        self._move_out()
        return self._shown

    @state.setter
    def state(self, value: State) -> None:
        if value is not vars(self).get("_shown"):
            self._shown = Shown(weakref.ref(self), value)
        self._in_core = False

    def _move_out(self) -> None:
        """Convert the states in the core to PyTorch's tensors, in `_shown`."""
        if not self._in_core:
            return
        self._in_core = False
        for place, kept in self._stepper.state().items():
            param = self._params[int(place)]
            found: State = {}
            if "step" in self._kept_names():
                wide = torch.get_default_dtype() == torch.float64
                found["step"] = torch.tensor(
                    float(kept["step"]), dtype=torch.float64 if wide else torch.float32
                )
            for name, ours in self._names.items():
                if ours in kept:
                    found[name] = own = torch.from_numpy(kept[ours])
                    if own.shape == param.shape:  # else the parameter has another shape now
                        fresh = torch.empty_like(param, requires_grad=False)
                        found[name] = fresh.copy_(own)
            if len(found) > ("step" in found):
                self._shown[param] = self._shown.get(param, {}) | found

    def _move_in(self, foreign: frozenset[int]) -> None:
        """Move the states in `_shown` into the core, but those of the foreign parameters."""
        states: dict[str, State] = {}
        rests: dict[Tensor, State] = {}
        names = self._kept_names()
        for place, param in enumerate(self._params):
            shown = self._shown.get(param)
            if not shown or place in foreign:
                continue
            kept = {
                ours: shown[name].detach().to("cpu", param.dtype).contiguous().numpy()
                for name, ours in self._names.items()
                if shown.get(name) is not None
            }
            if not kept:
                continue
            states[str(place)] = kept | {"step": round(float(shown.get("step", 1)))}
            rests[param] = {name: value for name, value in shown.items() if name not in names}
        self._stepper.load(states)
        for param, rest in rests.items():
            self._shown.pop(param, None)  # replaced, not emptied: somebody may hold the old one
            if rest:
                self._shown[param] = rest
        self._in_core, self._foreign = True, foreign
        self._dtypes = [param.dtype for param in self._params]

    def _kept_names(self) -> set[str]:
        return set(self._names) | ({"step"} if self._kind == "adam" else set())

    def state_dict(self) -> State:
        """Return what PyTorch's returns, with the clip's state under "clip" if there is a clip."""
        found: State = super().state_dict()
        if self.clip is not None:
            found["clip"] = self.clip.state_dict()
        return found

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a state of this class, or of PyTorch's of the same name."""
        super().load_state_dict(dict(state_dict))
        if self.clip is not None and state_dict.get("clip") is not None:
            self.clip.load_state_dict(state_dict["clip"])

    def __getstate__(self) -> State:
        found: State = super().__getstate__()
        return found | {"clip": self.clip, "clipped": self.clipped}

    def __setstate__(self, state: State) -> None:
        rest = dict(state)
        self._renew()
        self.state = rest.pop("state", defaultdict(dict))
        super().__setstate__(rest)
        self._step_supports_amp_scaling = False
