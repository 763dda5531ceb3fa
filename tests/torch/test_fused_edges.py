"""vegrad.torch.fuse with networks that are changed afterwards, or run in unusual ways."""

import copy
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import vegrad.torch as ours  # noqa: E402
from torch import nn  # noqa: E402

from tests.torch.test_fused import both, either_way, network, results  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def batch() -> torch.Tensor:
    return torch.linspace(-1, 1, 30, dtype=torch.float64).reshape(6, 5)


def test_names_mode_and_hooks_stay() -> None:
    parts = OrderedDict(first=nn.Linear(5, 7), act=nn.Tanh(), last=nn.Linear(7, 3))
    plain, seen = nn.Sequential(parts).double().eval(), []
    handle = plain.register_forward_hook(lambda *_: seen.append("hook"))
    plain.register_buffer("mean", torch.zeros(2))
    fused = ours.fuse(plain)
    assert type(fused) is ours.FusedMLP
    for one in (fused, copy.deepcopy(fused)):
        assert list(one.state_dict()) == list(plain.state_dict())
        assert not one.training
        assert one.last.out_features == 3
        one(batch())
    assert seen == ["hook", "hook"]
    handle.remove()
    fused(batch())
    assert seen == ["hook", "hook"]
    assert not pickle.loads(pickle.dumps(fused)).training
    again = ours.fuse(fused, direct=True)
    assert again.direct
    torch.testing.assert_close(again(batch()), plain(batch()))


class Skipping(nn.Sequential):
    def forward(self, x: torch.Tensor) -> Any:
        return x + super().forward(x)


def test_a_forward_of_its_own_is_not_fused() -> None:
    module = Skipping(nn.Linear(5, 5))
    with pytest.warns(UserWarning, match=r"not fused: the module's forward\(\) must be that of"):
        assert ours.fuse(module) is module
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Sequential, LSTM, .*, not list"):
        ours.fuse([nn.Linear(5, 5)])


def exchange(model: nn.Module) -> None:
    model[1] = nn.ReLU()


def exchange_weights(model: nn.Module) -> None:
    torch.manual_seed(1)
    model[2] = nn.Linear(7, 7).double()


def append(model: nn.Module) -> None:
    torch.manual_seed(1)
    model.append(nn.Linear(3, 2).double())


def insert(model: nn.Module) -> None:
    model.insert(1, nn.Sigmoid())


def delete(model: nn.Module) -> None:
    del model[3]


def pop(model: nn.Module) -> None:
    model.pop(-1)


@pytest.mark.parametrize("change", [exchange, exchange_weights, append, insert, delete, pop])
def test_layers_that_are_exchanged_afterwards(change: Callable[[Any], None]) -> None:
    """Exchanged layers run, also in copies and pickles."""
    plain, fused = both()
    for model in (plain, fused):
        change(model)
    for model in (fused, copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        torch.testing.assert_close(results(model, batch()), results(plain, batch()))


@pytest.mark.parametrize(
    ("activation", "name", "value"),
    [
        (nn.LeakyReLU, "negative_slope", 0.5),
        (nn.ELU, "alpha", 0.5),
        (nn.Softplus, "beta", 2.0),
        (nn.GELU, "approximate", "tanh"),
        (nn.Hardtanh, "max_val", 0.3),
    ],
)
def test_numbers_of_activations_that_change_afterwards(
    activation: Any, name: str, value: Any
) -> None:
    plain, fused = both(activation)
    for model in (plain, fused):
        setattr(model[1], name, value)
    torch.testing.assert_close(results(fused, batch()), results(plain, batch()))


def test_slices() -> None:
    plain, fused = both()
    assert type(fused[:2]) is nn.Sequential
    torch.testing.assert_close(fused[:3](batch()), plain[:3](batch()))
    assert list(fused[2:].state_dict()) == list(plain[2:].state_dict())
    assert fused[-1] is fused[4]


def penalized(model: nn.Module, x: torch.Tensor) -> Any:
    """Add the slope with respect to the inputs to a loss."""
    x = x.clone().requires_grad_()
    out = model(x).sum()
    (slope,) = torch.autograd.grad(out, x, create_graph=True)
    return out + slope.square().sum()


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
@either_way
def test_a_penalty_on_a_gradient_is_an_error(direct: bool) -> None:
    """Differentiating a gradient raises, rather than leaving its part of the loss out."""
    _, fused = both(direct=direct)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        penalized(fused, batch()).backward()
    if not direct:
        for unused in (False, True):
            with pytest.raises(RuntimeError, match="no second derivatives"):
                torch.autograd.grad(
                    penalized(fused, batch()), list(fused.parameters()), allow_unused=unused
                )
    fused.zero_grad()
    for _ in range(2):
        fused(batch()).sum().backward(create_graph=True)
    plain = network()
    for _ in range(2):
        plain(batch()).sum().backward()
    for got, want in zip(fused.parameters(), plain.parameters(), strict=True):
        assert got.grad.requires_grad
        torch.testing.assert_close(got.grad.detach(), want.grad)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        sum(one.grad.sum() for one in fused.parameters()).backward()


def test_traced_networks() -> None:
    """A trace of a fused pass would hold its numbers instead of its operations."""
    plain, fused = both()
    with torch.no_grad(), pytest.warns():
        traced = torch.jit.trace(fused, batch())
    torch.testing.assert_close(traced(2 * batch()), plain(2 * batch()))


def test_modes_that_watch_operations() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    for model in both():
        with FlopCounterMode(display=False) as counter:
            model(batch())
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch's own
def test_forward_derivatives() -> None:
    import torch.autograd.forward_ad as forward

    found = []
    for model in both():
        with forward.dual_level():
            x = forward.make_dual(batch(), torch.ones_like(batch()))
            found.append(forward.unpack_dual(model(x)).tangent)
    torch.testing.assert_close(*found)


def test_inputs_of_other_layouts() -> None:
    plain, fused = both()
    for x in (batch().to_sparse(), batch().expand(2, 6, 5)):
        torch.testing.assert_close(fused(x), plain(x))
    x = torch.complex(batch(), batch()).conj().imag  # with the negative bit
    torch.testing.assert_close(fused(x), plain(x))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_around_it(reentrant: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    found = []
    for model in both():
        x = batch().requires_grad_()
        for _ in range(3):
            checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()
        found.append([x.grad, *(one.grad for one in model.parameters())])
    torch.testing.assert_close(*found)


@either_way
def test_parameters_that_are_frozen_for_the_forward_pass_only(direct: bool) -> None:
    """Frozen parameters get no gradient, as in autograd, nor do those that are frozen later."""
    found = []
    for model in both(direct=direct):
        for frozen in (True, False):
            model[0].requires_grad_(not frozen)
            loss = model(batch()).sum()
            model[0].requires_grad_(frozen)
            loss.backward()
            found.append([None if one.grad is None else one.grad for one in model.parameters()])
            assert found[-1][0] is None
            assert found[-1][2] is not None
    torch.testing.assert_close(found[0][2:], found[2][2:])


def test_weights_that_are_transposed_where_they_lie() -> None:
    for change in (lambda one: one.t_(), lambda one: setattr(one, "data", one.data.t())):
        plain, fused = both()
        with torch.no_grad():
            for model in (plain, fused):
                change(model[2].weight)
        torch.testing.assert_close(fused(batch()), plain(batch()))


def test_networks_that_are_fused_in_inference_mode() -> None:
    plain = network()
    with torch.inference_mode():
        module = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
        with pytest.warns(UserWarning, match="must not be made in inference mode"):
            assert ours.fuse(module) is module
        fused = ours.fuse(plain)
    assert type(fused) is ours.FusedMLP
    torch.testing.assert_close(results(fused, batch()), results(network(), batch()))
