"""torch.optim's SGD, Adam and AdamW, and Lion, on vegrad's kernels, with the clip inside the step.

What they keep of each parameter lies in the core. Whoever looks at `optimizer.state` (a state_dict,
a copy, a pickle) is handed it as PyTorch's tensors, and the next step takes it in again, with
whatever was changed; so states go both ways between these classes and PyTorch's.

Parameters that the kernels do not step over (other devices, sparse or complex gradients, float16
and bfloat16 weights, memory that is shared, `differentiable`) are stepped by PyTorch's own code.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from itertools import repeat
from operator import is_, is_not
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from vegrad import _core
from vegrad._core import Clipped, NonFiniteGradientError
from vegrad.clipping import Rule
from vegrad.torch.clip import clip_by_rule, is_ours

Group = dict[str, Any]
_UNCLIPPED = ("none", None, 2.0, "propagate", 0.0)


class Stepped(torch.optim.Optimizer):
    """What the optimizers share: the core's step over all groups at once, and where states live."""

    _kind: ClassVar[str]
    _names: ClassVar[dict[str, str]]
    """What PyTorch calls what is kept, and what the core does."""

    _params: list[Tensor]
    _stepper: _core.Optimizer
    _shown: Any
    param_groups: list[Group]
    _at_home = False  # the states are in the core, not in _shown
    _odd: frozenset[int] = frozenset()  # positions of the parameters left to PyTorch
    _quick = True  # no parameter was odd at the last step
    _careful = False  # parameters that share memory are odd
    _dtypes: Any = None  # of the parameters when the states came home

    clip: Rule | None = None
    """A rule of vegrad.clipping, for the gradients of all groups together."""
    clipped: Clipped | None = None
    """What the clip found and did at the last step."""

    def __init__(self, params: Any, *arguments: Any, clip: Rule | None = None, **options: Any):
        if clip is not None and not isinstance(clip, Rule):
            raise TypeError(
                f"clip must be a rule of vegrad.clipping or None, not {type(clip).__name__}"
            )
        self._renew()
        super().__init__(params, *arguments, **options)
        self.clip = clip
        self._step_supports_amp_scaling = False  # a GradScaler does it, also with fused=True

    def _renew(self) -> None:
        self._params, self._stepper = [], _core.Optimizer(kind=self._kind)
        self._settings: list[tuple[Any, _core.Optimizer]] = []
        self._at_home, self._odd, self._quick, self._careful = False, frozenset(), True, False

    def _numbers(self, group: Group) -> tuple[Any, ...]:
        """All of a group's numbers that the core must know, but the learning rate.

        Plain ones: tensors may be changed in place.
        """
        raise NotImplementedError

    def _setting(self, numbers: tuple[Any, ...]) -> _core.Optimizer:
        raise NotImplementedError

    # The step ----------------------------------------------------------------------------------

    @torch._disable_dynamo
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every parameter that has a gradient; `closure` as in torch.optim.

        Raises:
            NonFiniteGradientError: if the clip's rule says so; nothing has changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        if len(groups) == 1:
            params = groups[0]["params"]
        else:
            params = [param for group in groups for param in group["params"]]
        known = self._params
        if len(known) != len(params) or not all(map(is_, params, known)):
            self._hand_out()
            self._params, self._careful = list(params), False
        grads = [param.grad for param in params]
        if not self._at_home:
            self._quick = not self._odd_ones(grads)
            if self._quick:
                self._take_in(frozenset())
        if not self._quick or not self._stepped_over(params, grads):
            self._step_mixed(params, grads)
        return loss

    def _stepped_over(self, params: list[Any], grads: list[Any], again: bool = False) -> bool:
        """Steps over all, or returns that some are odd."""
        try:
            self._step_over(params, grads, self.clip)
            return True
        except NonFiniteGradientError:
            raise
        except (TypeError, ValueError):
            self._careful = self._careful or again
            if self._odd_ones(grads):
                return False
            if again:
                raise
        self._hand_out()  # their dtypes may have changed
        self._take_in(frozenset())
        return self._stepped_over(params, grads, True)

    def _step_over(self, params: list[Any], grads: list[Any], clip: Rule | None) -> None:
        full = all(map(is_not, grads, repeat(None)))
        if not full and all(map(is_, grads, repeat(None))):
            return
        request, learn = _UNCLIPPED, None
        if clip is not None:
            grads, request, learn = clip.prepare(grads)
        spans, end, known = [], 0, self._settings
        for place, group in enumerate(self.param_groups):
            numbers = self._numbers(group)
            if place == len(known):
                known.append((numbers, self._setting(numbers)))
            elif known[place][0] != numbers:
                known[place] = (numbers, self._setting(numbers))
            end += len(group["params"])
            spans.append((end, float(group["lr"]), known[place][1]))
        self.clipped = self._stepper.step(params, grads, 0.0, *request, spans)
        if learn is not None:
            learn(self.clipped)
        if not self.clipped.skipped:
            if not full:
                params = [p for p, g in zip(params, grads, strict=True) if g is not None]
            increment_version(params)

    def norms(self) -> dict[int, float] | None:
        """The L2 norm of each gradient of the last step, by the parameter's id, if it is known."""
        if self.clipped is None or not self._quick or getattr(self.clip, "ord", 2) != 2:
            return None
        used = [id(param) for param in self._params if param.grad is not None]
        norms = self.clipped.norms.tolist()
        return dict(zip(used, norms, strict=True)) if len(used) == len(norms) else None

    # Parameters that the core does not step over -------------------------------------------------

    def _odd_ones(self, grads: list[Any]) -> frozenset[int]:
        flags = [group["differentiable"] for group in self.param_groups for _ in group["params"]]
        if self._careful:
            shared = self._sharing(grads)
            flags = [flag or place in shared for place, flag in enumerate(flags)]
        return frozenset(
            place
            for place, (param, grad) in enumerate(zip(self._params, grads, strict=True))
            if not is_ours(param)
            or param.dtype not in (torch.float32, torch.float64)
            or not (grad is None or is_ours(grad))
            or flags[place]
        )

    def _sharing(self, grads: list[Any]) -> set[int]:
        """Positions of parameters with memory that others, or a gradient, may have too."""
        seen: dict[int, list[int]] = defaultdict(list)
        for place, pair in enumerate(zip(self._params, grads, strict=True)):
            for one in pair:
                if one is not None and is_ours(one) and one.numel():
                    seen[one.untyped_storage().data_ptr()].append(place)
        return {place for places in seen.values() if len(places) > 1 for place in places}

    def _step_mixed(self, params: list[Any], grads: list[Any]) -> None:
        odd = self._odd_ones(grads)
        dtypes = [param.dtype for param in params]
        if odd != self._odd or not self._at_home or dtypes != self._dtypes:
            self._hand_out()
            self._take_in(odd)
        clipped = self.clip and clip_by_rule(self.clip, params, grads)
        if not (clipped and clipped.skipped):
            ours = [None if place in odd else one for place, one in enumerate(params)]
            of_ours = [None if place in odd else one for place, one in enumerate(grads)]
            self._step_as_torch(odd)  # first, for it may raise
            self._step_over(ours, of_ours, None)
        if clipped:
            self.clipped = clipped
        self._quick = not odd

    def _step_as_torch(self, odd: frozenset[int]) -> None:
        """PyTorch's own step, of these positions."""
        groups, place = self.param_groups, 0
        theirs = []
        for group in groups:
            chosen = []
            for param in group["params"]:
                if place in odd:
                    chosen.append(param)
                place += 1
            theirs.append(group | {"params": chosen})
        at_home, self._at_home = self._at_home, False  # `state` is what is theirs
        self.param_groups = [group for group in theirs if group["params"]]
        try:
            self._plain_step()
        finally:
            self.param_groups, self._at_home = groups, at_home

    def _plain_step(self) -> None:
        step = super().step
        if getattr(step, "hooked", False):  # our own step calls the hooks
            step.__wrapped__(self)
        else:
            step()

    # States --------------------------------------------------------------------------------------

    @property
    def state(self) -> Any:
        """What is kept of each parameter, as PyTorch's optimizers keep it."""
        self._hand_out()
        return self._shown

    @state.setter
    def state(self, value: Any) -> None:
        self._shown, self._at_home = value, False

    def _hand_out(self) -> None:
        """From the core to `_shown`."""
        if not self._at_home:
            return
        self._at_home = False
        for place, kept in self._stepper.state().items():
            param = self._params[int(place)]
            found: dict[str, Any] = {}
            if "step" in self._kept_names():
                wide = torch.get_default_dtype() == torch.float64
                found["step"] = torch.tensor(
                    float(kept["step"]), dtype=torch.float64 if wide else torch.float32
                )
            for name, ours in self._names.items():
                if ours in kept:
                    found[name] = flat = torch.from_numpy(kept[ours])
                    if flat.numel() == param.numel():  # else it has been given another shape
                        fresh = torch.empty_like(param, requires_grad=False)
                        found[name] = fresh.copy_(flat.view(param.shape))
            if len(found) > ("step" in found):
                self._shown[param] = self._shown.get(param, {}) | found

    def _take_in(self, odd: frozenset[int]) -> None:
        """From `_shown` to the core, but for the odd ones."""
        states: dict[str, Any] = {}
        names = self._kept_names()
        for place, param in enumerate(self._params):
            shown = self._shown.get(param)
            if not shown or place in odd:
                continue
            kept = {
                ours: shown[name].detach().to("cpu", param.dtype).contiguous().numpy()
                for name, ours in self._names.items()
                if shown.get(name) is not None
            }
            if not kept:
                continue
            states[str(place)] = kept | {"step": round(float(shown.get("step", 1)))}
            rest = {name: value for name, value in shown.items() if name not in names}
            self._shown.pop(param, None)  # not emptied: it may have been given to somebody
            if rest:
                self._shown[param] = rest
        self._stepper.load(states)
        self._at_home, self._odd = True, odd
        self._dtypes = [param.dtype for param in self._params]

    def _kept_names(self) -> set[str]:
        return set(self._names) | ({"step"} if self._kind == "adam" else set())

    def state_dict(self) -> dict[str, Any]:
        """As PyTorch's, with the clip's state under "clip" if there is a clip."""
        found: dict[str, Any] = super().state_dict()
        if self.clip is not None:
            found["clip"] = self.clip.state_dict()
        return found

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on from a state of this class or of PyTorch's of the same name."""
        super().load_state_dict(dict(state_dict))
        if self.clip is not None and state_dict.get("clip") is not None:
            self.clip.load_state_dict(state_dict["clip"])

    def __getstate__(self) -> dict[str, Any]:
        found: dict[str, Any] = super().__getstate__()
        return found | {"clip": self.clip}

    def __setstate__(self, state: dict[str, Any]) -> None:
        rest = dict(state)
        self._renew()
        self.state = rest.pop("state", defaultdict(dict))
        super().__setstate__(rest)
        self._step_supports_amp_scaling = False


class SGD(Stepped, torch.optim.SGD):
    """torch.optim.SGD, and its arguments, with `clip=`: a rule of vegrad.clipping."""

    _kind, _names = "sgd", {"momentum_buffer": "momentum"}

    def _numbers(self, group: Group) -> tuple[Any, ...]:
        return (float(group["momentum"]), float(group["dampening"]), group["nesterov"],
                float(group["weight_decay"]), group["maximize"])  # fmt: skip

    def _setting(self, numbers: tuple[Any, ...]) -> _core.Optimizer:
        momentum, dampening, nesterov, decay, maximize = numbers
        return _core.Optimizer(
            "sgd",
            momentum=momentum,
            dampening=dampening,
            nesterov=nesterov,
            weight_decay=decay,
            maximize=maximize,
        )


class Adam(Stepped, torch.optim.Adam):
    """torch.optim.Adam, and its arguments, with `clip=`: a rule of vegrad.clipping."""

    _kind = "adam"
    _names: ClassVar[dict[str, str]] = {
        "exp_avg": "mean",
        "exp_avg_sq": "square",
        "max_exp_avg_sq": "largest_square",
    }

    def _numbers(self, group: Group) -> tuple[Any, ...]:
        first, second = group["betas"]
        return (float(first), float(second), float(group["eps"]), float(group["weight_decay"]),
                group["amsgrad"], group["maximize"],
                group["decoupled_weight_decay"])  # fmt: skip

    def _setting(self, numbers: tuple[Any, ...]) -> _core.Optimizer:
        first, second, eps, decay, amsgrad, maximize, decoupled = numbers
        return _core.Optimizer(
            "adam",
            beta1=first,
            beta2=second,
            eps=eps,
            weight_decay=decay,
            decoupled=decoupled,
            amsgrad=amsgrad,
            maximize=maximize,
        )


class AdamW(Adam, torch.optim.AdamW):
    """torch.optim.AdamW, and its arguments, with `clip=`: a rule of vegrad.clipping."""


class Lion(Stepped):
    """Lion (Chen et al. 2023, arXiv:2302.06675), with `clip=`: a rule of vegrad.clipping.

    u = β1 m + (1 - β1) g; p ← p (1 - lr · weight_decay) - lr · sign(u); m = β2 m + (1 - β2) g.
    """

    _kind, _names = "lion", {"exp_avg": "mean"}

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        clip: Rule | None = None,
    ):
        if not lr >= 0 or not weight_decay >= 0:
            raise ValueError(f"lr and weight_decay must be at least 0, not {lr}, {weight_decay}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be from 0 to below 1, not {betas}")
        numbers = {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay}
        super().__init__(
            params, numbers | {"maximize": maximize, "differentiable": False}, clip=clip
        )

    def _numbers(self, group: Group) -> tuple[Any, ...]:
        first, second = group["betas"]
        return float(first), float(second), float(group["weight_decay"]), group["maximize"]

    def _setting(self, numbers: tuple[Any, ...]) -> _core.Optimizer:
        first, second, decay, maximize = numbers
        return _core.Optimizer(
            "lion",
            beta1=first,
            beta2=second,
            weight_decay=decay,
            decoupled=True,
            maximize=maximize,
        )

    @torch.no_grad()
    def _plain_step(self) -> None:
        for group in self.param_groups:
            (first, second), rate = group["betas"], group["lr"]
            for param in group["params"]:
                if param.grad is None:
                    continue
                if param.grad.is_sparse:
                    raise RuntimeError("Lion does not support sparse gradients")
                grad = -param.grad if group["maximize"] else param.grad
                mean = self.state[param].setdefault("exp_avg", torch.zeros_like(param))
                param.mul_(1 - rate * group["weight_decay"])
                param.sub_(rate * mean.lerp(grad.to(mean.dtype), 1 - first).sign())
                mean.lerp_(grad.to(mean.dtype), 1 - second)
