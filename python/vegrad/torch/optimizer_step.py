"""The step of vegrad's torch optimizers: the core's, over all groups at once, with the clip inside.

Parameters that the kernels do not step over are called foreign here, and PyTorch's own code steps
them: those on other devices, those with sparse or complex gradients, float16 and bfloat16 weights,
memory that several parameters share, and groups with `differentiable`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, ClassVar, ParamSpec, TypeAlias, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim.optimizer import _global_optimizer_post_hooks as _all_after
from torch.optim.optimizer import _global_optimizer_pre_hooks as _all_before

from vegrad import _core
from vegrad._core import NonFiniteGradientError
from vegrad.arrays.checks import as_number
from vegrad.clipping import Rule
from vegrad.torch.clip import clip_by_rule, is_ours
from vegrad.torch.optimizer_state import CoreState

Group: TypeAlias = dict[str, Any]
Numbers: TypeAlias = tuple[float, ...]
Loss: TypeAlias = float | Tensor
Grads: TypeAlias = list[Tensor | None]
Params = ParamSpec("Params")
Result = TypeVar("Result")
_UNCLIPPED = ("none", None, 2.0, "propagate", 0.0)


def _telling(func: Callable[Params, Result]) -> Callable[Params, Result]:
    """Return PyTorch's wrapper of a step, which is passed by while nobody listens.

    It tells hooks and the profiler of each step, and takes 20 µs to tell nobody.
    """
    told = torch.optim.Optimizer.profile_hook_step(func)

    @wraps(func)
    def step(*arguments: Params.args, **options: Params.kwargs) -> Result:
        self = cast(torch.optim.Optimizer, arguments[0])
        listened = (
            _all_before
            or _all_after
            or self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or torch.autograd._profiler_enabled()
        )
        return (told if listened else func)(*arguments, **options)

    return step


class CoreStep(CoreState):
    """A torch optimizer whose steps are the core's."""

    _arguments: ClassVar[tuple[str, ...]]
    """The core's names of the `_numbers` of a group."""

    param_groups: list[Group]
    _all_ours: bool
    """False if a parameter was foreign at the last step."""
    _sharing_is_foreign: bool
    """True once the core has refused a step where parameters may have shared memory."""

    _loss: Callable[[], float] | None = None
    """Gives the loss of this step to the clip."""

    def _renew(self) -> None:
        super()._renew()
        self._known: list[tuple[Numbers, _core.Optimizer]] = []  # by group
        self._all_ours, self._sharing_is_foreign = True, False

    def _numbers(self, group: Group) -> Numbers:
        """Return all of a group's numbers that the core must know, but the learning rate.

        They are plain numbers, since tensors may be changed in place.
        """
        raise NotImplementedError

    def _setting(self, numbers: Numbers) -> _core.Optimizer:
        """Return a core's optimizer that stands for a group with these numbers."""
        arguments: dict[str, Any] = dict(zip(self._arguments, numbers, strict=True))
        return _core.Optimizer(self._kind, **arguments)

    profile_hook_step = staticmethod(_telling)

    @torch._disable_dynamo
    def step(
        self, closure: Callable[[], Loss] | None = None, *, loss: Loss | None = None
    ) -> Loss | None:
        """Take one step of every parameter that has a gradient; `closure` is as in torch.optim.

        Args:
            closure: measures the loss anew and returns it, which this method does too.
            loss: of this step, if there is no closure, for a clip that judges by it:
                `vegrad.clipping.SkipSpike`.

        Raises:
            NonFiniteGradientError: if the clip's rule says so; nothing has changed then.
        """
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        if len(groups) == 1:
            params = groups[0]["params"]
        else:
            params = [param for group in groups for param in group["params"]]
        known = self._params
        if not _core.same_objects(params, known):
            self._move_out()
            self._params, self._sharing_is_foreign = list(params), False
        grads: Grads = _core.gradients(params)
        if not self._in_core:
            self._all_ours = not self._find_foreign(grads)
            if self._all_ours:
                self._move_in(frozenset())
        self._loss = None if loss is None else partial(as_number, "loss", loss)
        try:
            if not self._all_ours or not self._step_all(params, grads):
                self._step_mixed(params, grads)
        finally:
            self._loss = None  # which may hold on to a graph
        return None if closure is None else loss

    def _step_all(self, params: list[Tensor], grads: Grads, again: bool = False) -> bool:
        """Step over all parameters in the core; return False if some turn out to be foreign."""
        try:
            self._step_in_core(params, grads, self.clip)
            return True
        except NonFiniteGradientError:
            raise
        except (TypeError, ValueError):
            self._sharing_is_foreign = self._sharing_is_foreign or again
            if self._find_foreign(grads):
                return False
            if again:
                raise
        self._move_out()  # the parameters' dtypes may have changed
        self._move_in(frozenset())
        return self._step_all(params, grads, True)

    def _step_in_core(self, params: Grads, grads: Grads, clip: Rule | None) -> None:
        missing = _core.nones(grads)
        if missing and missing == len(grads):
            return
        request, learn = _UNCLIPPED, None
        if clip is not None:
            grads, request, learn = clip.prepare(grads, self._loss)
        spans, end, known = [], 0, self._known
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
            if missing:
                params = [p for p, g in zip(params, grads, strict=True) if g is not None]
            increment_version(params)

    def norms(self) -> dict[int, float] | None:
        """Return the L2 norm of each gradient of the last step, by the parameter's id, if known."""
        if self.clipped is None or not self._all_ours or getattr(self.clip, "ord", 2) != 2:
            return None
        used = [id(param) for param in self._params if param.grad is not None]
        norms = self.clipped.norms.tolist()
        return dict(zip(used, norms, strict=True)) if len(used) == len(norms) else None

    def _find_foreign(self, grads: Grads) -> frozenset[int]:
        """Return the positions of the parameters that the core does not step over."""
        flags = [group["differentiable"] for group in self.param_groups for _ in group["params"]]
        if self._sharing_is_foreign:
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

    def _sharing(self, grads: Grads) -> set[int]:
        """Return the positions of parameters whose memory others, or a gradient, may have too."""
        seen: dict[int, list[int]] = defaultdict(list)
        for place, pair in enumerate(zip(self._params, grads, strict=True)):
            for one in pair:
                if one is not None and is_ours(one) and one.numel():
                    seen[one.untyped_storage().data_ptr()].append(place)
        return {place for places in seen.values() if len(places) > 1 for place in places}

    def _step_mixed(self, params: list[Tensor], grads: Grads) -> None:
        """Step over the foreign parameters by PyTorch's code, then over the others in the core."""
        foreign = self._find_foreign(grads)
        dtypes = [param.dtype for param in params]
        if foreign != self._foreign or not self._in_core or dtypes != self._dtypes:
            self._move_out()
            self._move_in(foreign)
        clipped = self.clip and clip_by_rule(self.clip, params, grads, self._loss)
        if not (clipped and clipped.skipped):
            ours, of_ours = (
                [None if place in foreign else one for place, one in enumerate(several)]
                for several in (params, grads)
            )
            self._step_as_torch(foreign)  # comes first, for it may raise
            self._step_in_core(ours, of_ours, None)
        if clipped:
            self.clipped = clipped
        self._all_ours = not foreign

    def _step_as_torch(self, foreign: frozenset[int]) -> None:
        """Take PyTorch's own step of the parameters at these positions."""
        groups, place = self.param_groups, 0
        theirs = []
        for group in groups:
            end = place + len(group["params"])
            chosen = [self._params[one] for one in range(place, end) if one in foreign]
            theirs.append(group | {"params": chosen})
            place = end
        in_core, self._in_core = self._in_core, False  # so that `state` has only PyTorch's states
        self.param_groups = [group for group in theirs if group["params"]]
        try:
            self._plain_step()
        finally:
            self.param_groups, self._in_core = groups, in_core

    def _plain_step(self) -> None:
        """Call the step of PyTorch's class, without its hooks: they are called by our own step."""
        step = super().step
        if getattr(step, "hooked", False):
            step.__wrapped__(self)
        else:
            step()
