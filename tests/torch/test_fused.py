"""fuse(nn.Sequential), compared with the module that it came from."""

import copy
import pickle
import weakref
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import vegrad.torch as ours  # noqa: E402
from torch import nn  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")

ACTIVATIONS = [
    nn.Tanh,
    nn.Sigmoid,
    nn.ReLU,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Softplus,
    nn.Hardtanh,
    nn.Identity,
]


def network(
    activation: type[nn.Module] | None = nn.Tanh,
    last: type[nn.Module] | None = None,
    dtype: torch.dtype = torch.float64,
) -> torch.nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(5, 7), activation(), nn.Linear(7, 7), activation(), nn.Linear(7, 3)]
    return nn.Sequential(*layers, *([last()] if last else [])).to(dtype)


def both(*arguments: Any, direct: bool = False, **options: Any) -> tuple[Any, Any]:
    plain = network(*arguments, **options)
    fused = ours.fuse(copy.deepcopy(plain), direct=direct)
    assert type(fused) is ours.FusedMLP
    return plain, fused


def results(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    model.zero_grad()
    out = model(x)
    (
        out.sin() * torch.linspace(-1, 1, out.numel(), dtype=x.dtype).reshape(out.shape)
    ).sum().backward()
    return [out.detach(), x.grad, *(one.grad for one in model.parameters())]


either_way = pytest.mark.parametrize("direct", [False, True])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("last", [None, nn.Sigmoid, nn.ReLU])
@either_way
def test_values_and_gradients(
    activation: type[nn.Module], last: type[nn.Module] | None, direct: bool
) -> None:
    plain, fused = both(activation, last, direct=direct)
    x = torch.randn(9, 5, dtype=torch.float64)
    # PyTorch's softplus is linear from 20 on.
    torch.testing.assert_close(results(fused, x), results(plain, x), rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), plain(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU, nn.Sigmoid])
def test_gradients_are_double_checked(activation: type[nn.Module]) -> None:
    """Gradients agree with finite differences."""
    _, fused = both(activation)
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: fused(x), (x, *fused.parameters()))


@pytest.mark.parametrize("shape", [(1, 5), (200, 5), (2, 3, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_shapes_and_dtypes(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    plain, fused = both(dtype=dtype)
    x = torch.randn(shape, dtype=dtype)
    torch.testing.assert_close(results(fused, x), results(plain, x), rtol=1e-4, atol=1e-5)
    x = torch.randn(*shape[:-1], 10, dtype=dtype)[..., ::2]
    torch.testing.assert_close(results(fused, x), results(plain, x), rtol=1e-4, atol=1e-5)


def test_parameters_and_their_memory_are_shared() -> None:
    plain = network()
    parameters, state = list(plain.parameters()), copy.deepcopy(plain.state_dict())
    fused = ours.fuse(plain)
    assert all(a is b for a, b in zip(parameters, fused.parameters(), strict=True))
    assert fused.state_dict().keys() == state.keys()
    x = torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(fused(x), plain(x))
    with torch.no_grad():
        plain[0].weight.mul_(2)
    torch.testing.assert_close(fused(x), plain(x))
    fused.load_state_dict(state)
    torch.testing.assert_close(plain.state_dict(), state)
    torch.testing.assert_close(fused(x), plain(x))


@either_way
def test_training_is_the_same(direct: bool) -> None:
    ends = []
    for model in both(direct=direct):
        optimizer = ours.AdamW(model.parameters(), 0.01)
        monitor = ours.Monitor(model)
        for step in range(50):
            x = torch.linspace(-1, 1, 40, dtype=torch.float64).reshape(8, 5).roll(step, 0)
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        assert len(monitor.history) == 50
        ends.append(nn.utils.parameters_to_vector(model.parameters()))
    torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-12)


@either_way
def test_passes_that_cross(direct: bool) -> None:
    """Run two forward passes before their backward passes, one of them twice; gradients add up."""
    grads = []
    for model in both(direct=direct):
        one, two = (torch.randn(6, 5, dtype=torch.float64, generator=g) for g in seeds())
        first, second = model(one).square().sum(), model(two).sin().sum()
        first.backward(retain_graph=True)
        second.backward()
        kept = [p.grad.clone() for p in model.parameters()]
        first.backward()
        for old, p in zip(kept, model.parameters(), strict=True):
            assert not torch.equal(old, p.grad)
        grads.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)


def seeds() -> list[Any]:
    return [torch.Generator().manual_seed(seed) for seed in (1, 2)]


def test_gradients_do_not_change_later() -> None:
    _, fused = both()
    x = torch.randn(6, 5, dtype=torch.float64)
    fused(x).sum().backward()
    kept = [p.grad for p in fused.parameters()]
    frozen = [g.clone() for g in kept]
    fused.zero_grad()
    fused(x * 2).square().sum().backward()
    torch.testing.assert_close(kept, frozen, rtol=0, atol=0)


def test_frozen_parameters_and_autograd_grad() -> None:
    plain, fused = both()
    for model in (plain, fused):
        model[2].weight.requires_grad_(False)
    x = torch.randn(6, 5, dtype=torch.float64)
    wanted = [[p for p in model.parameters() if p.requires_grad] for model in (plain, fused)]
    got = [torch.autograd.grad(m(x).sum(), p) for m, p in zip((plain, fused), wanted, strict=True)]
    torch.testing.assert_close(*got, rtol=1e-9, atol=1e-9)


def test_direct_gradients_of_frozen_parameters() -> None:
    plain, fused = both(direct=True)
    x = torch.randn(6, 5, dtype=torch.float64)
    for model in (plain, fused):
        model[2].requires_grad_(False)
        model(x).sum().backward()
        model.zero_grad(set_to_none=False)
        model(x).sum().backward()
    for got, want in zip(fused.parameters(), plain.parameters(), strict=True):
        assert (got.grad is None) == (want.grad is None)
        if want.grad is not None:
            torch.testing.assert_close(got.grad, want.grad)
    fused.requires_grad_(False)
    assert not fused(x).requires_grad
    x.requires_grad_()
    fused(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.autograd.grad(plain(x).sum(), x)[0])


def test_a_monitor_of_a_fused_network() -> None:
    _, fused = both()
    monitor, optimizer = ours.Monitor(nn.Sequential(fused)), ours.SGD(fused.parameters())
    fused(torch.randn(6, 5, dtype=torch.float64)).sum().backward()
    optimizer.step()
    assert monitor.scalars(all=True)["delta_norm/0"] == pytest.approx(18**0.5)


@either_way
def test_weights_that_change_between_the_passes_are_an_error(direct: bool) -> None:
    _, fused = both(direct=direct)
    loss = fused(torch.randn(6, 5, dtype=torch.float64)).sum()
    with torch.no_grad():
        fused[0].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_where_the_fused_pass_does_not_fit_the_layers_run() -> None:
    plain, fused = both(dtype=torch.float32)
    x = torch.randn(6, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert fused(x).dtype == torch.bfloat16
    torch.testing.assert_close(fused(x[0]), plain(x[0]))
    with pytest.raises(RuntimeError, match="dtype"):
        fused(x.double())
    fused.double()
    torch.testing.assert_close(fused(x.double()), plain.double()(x.double()))
    assert fused(torch.zeros(0, 5, dtype=torch.float64)).shape == (0, 3)


def test_copies_and_pickles() -> None:
    _, fused = both()
    x = torch.randn(6, 5, dtype=torch.float64)
    want = fused(x)
    for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert type(other) is ours.FusedMLP
        torch.testing.assert_close(other(x), want)
        with torch.no_grad():
            other[0].weight.zero_()
        torch.testing.assert_close(fused(x), want)


tied = nn.Linear(4, 4)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([nn.Linear(4, 4), nn.Dropout()], "layer 1 must be a Linear or the activation of one"),
        ([nn.Tanh(), nn.Linear(4, 4)], "layer 0 must be a Linear"),
        ([], "there must be a Linear layer"),
        ([nn.Linear(4, 4, bias=False)], "layer 0 must have a bias"),
        ([nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)], "of one kind"),
        ([nn.Linear(4, 4), nn.ELU(0.5)], "alpha of layer 1 must be 1.0"),
        ([nn.Linear(4, 4), nn.Linear(4, 4, dtype=torch.float64)], "all parameters must be float32"),
        ([nn.Linear(4, 4, dtype=torch.bfloat16)], "all parameters must be float32"),
        ([nn.Linear(4, 4, device="meta")], "on the CPU"),
        ([tied, nn.Tanh(), tied], "no two layers may share"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_known_is_left_as_it_is(layers: list[Any], said: str) -> None:
    module = nn.Sequential(*layers)
    with pytest.warns(UserWarning, match=f"not fused: .*{said}"):
        assert ours.fuse(module) is module


def test_gradients_that_somebody_holds_are_not_written_again() -> None:
    model = ours.fuse(network())
    x = torch.randn(4, 5, dtype=torch.float64)
    model(x).sum().backward()
    tensor, array = model[0].weight.grad, model[0].bias.grad.numpy()
    before = tensor.clone(), array.copy()
    for _ in range(3):
        model.zero_grad()
        (3 * model(x)).sum().backward()
    assert torch.equal(tensor, before[0])
    assert (array == before[1]).all()
    del tensor, array
    model.zero_grad()
    model(x).sum().backward()
    assert torch.equal(model[0].weight.grad, before[0])


def test_a_softplus_that_bends_elsewhere_is_not_fused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Softplus(threshold=5.0), nn.Linear(4, 2))
    with pytest.warns(UserWarning, match="threshold of layer 1 must be 20"):
        assert ours.fuse(model) is model


# The way that gradients go: at once where autograd would only add them to `.grad`, else one by one.


def run_plain(model: nn.Module, loss: torch.Tensor) -> None:
    loss.backward()


def run_twice(model: nn.Module, loss: torch.Tensor) -> None:
    loss.backward(retain_graph=True)
    loss.backward()


def run_zeroed(model: nn.Module, loss: torch.Tensor) -> None:
    loss.backward(retain_graph=True)
    model.zero_grad(set_to_none=False)
    loss.backward()


def run_inputs(model: nn.Module, loss: torch.Tensor) -> None:
    loss.backward(inputs=[model[0].bias, model[2].weight])


def run_grad(model: nn.Module, loss: torch.Tensor) -> None:
    for one, grad in zip(
        model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
    ):
        one.grad = grad


def run_some(model: nn.Module, loss: torch.Tensor) -> None:
    (model[2].weight.grad,) = torch.autograd.grad(loss, [model[2].weight])


def run_hook(model: nn.Module, loss: torch.Tensor) -> None:
    handle = model[0].weight.register_hook(lambda grad: 3 * grad)
    loss.backward(retain_graph=True)
    handle.remove()
    loss.backward()


def quintuple(parameter: torch.Tensor) -> None:
    parameter.grad.mul_(5)


def run_late_hook(model: nn.Module, loss: torch.Tensor) -> None:
    model[2].bias.register_post_accumulate_grad_hook(quintuple)
    loss.backward()


def run_anomaly(model: nn.Module, loss: torch.Tensor) -> None:
    with torch.autograd.set_detect_anomaly(True, check_nan=True):
        loss.backward()


def run_frozen(model: nn.Module, loss: torch.Tensor) -> None:
    loss.backward(retain_graph=True)
    model[2].requires_grad_(False)
    loss.backward(retain_graph=True)
    model[2].requires_grad_(True)
    loss.backward()


def run_sparse(model: nn.Module, loss: torch.Tensor) -> None:
    model[0].weight.grad = torch.ones_like(model[0].weight).to_sparse()
    loss.backward()


def run_create_graph(model: nn.Module, loss: torch.Tensor) -> None:
    grads = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    for one, grad in zip(model.parameters(), grads, strict=True):
        one.grad = grad.detach()


def loss_once(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x).sin().sum()


def loss_recurrent(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return (model(x) * model(x.cos())).sum()


def loss_decayed(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x).sin().sum() + sum(one.square().sum() for one in model.parameters())


RUNS = [
    run_plain,
    run_twice,
    run_zeroed,
    run_inputs,
    run_grad,
    run_some,
    run_hook,
    run_late_hook,
    run_anomaly,
    run_frozen,
    run_sparse,
    run_create_graph,
]


@pytest.mark.filterwarnings("ignore:Anomaly")
@pytest.mark.parametrize("loss", [loss_once, loss_recurrent, loss_decayed])
@pytest.mark.parametrize("run", RUNS)
def test_gradients_arrive_as_ever(run: Any, loss: Any) -> None:
    x = torch.randn(6, 5, dtype=torch.float64)
    found = []
    for model in both():
        for _ in range(3):
            run(model, loss(model, x))
        found.append([one.grad for one in model.parameters()])
    for got, want in zip(*found, strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            torch.testing.assert_close(got.to_dense(), want.to_dense(), rtol=1e-9, atol=1e-9)
            assert got.requires_grad == want.requires_grad


def test_second_derivatives_are_an_error() -> None:
    _, fused = both()
    loss = loss_once(fused, torch.randn(6, 5, dtype=torch.float64))
    grad = torch.autograd.grad(loss, fused[0].weight, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="no second derivatives"):
        grad.sum().backward()


@either_way
def test_what_was_done_to_a_gradient_is_gone_with_it(direct: bool) -> None:
    """Memory and tensors are used again once nobody has them, and are as good as new."""
    _, fused = both(direct=direct)
    x = torch.randn(6, 5, dtype=torch.float64)
    loss_once(fused, x).backward()
    want = [one.grad.clone() for one in fused.parameters()]
    for change in ("t_", "requires_grad_", "zero_"):
        getattr(fused[2].weight.grad, change)()
        fused.zero_grad()
        loss_once(fused, x).backward()
        got = [one.grad for one in fused.parameters()]
        torch.testing.assert_close(got, want)
        assert not any(one.requires_grad for one in got)
        assert [one.stride() for one in got] == [one.stride() for one in want]
        del got
    held = weakref.ref(fused)
    del fused
    assert held() is None  # without a garbage collection: nothing goes in a circle


def test_parameters_that_somebody_replaced() -> None:
    plain, fused = both()
    x = torch.randn(6, 5, dtype=torch.float64)
    other = {name: 2 * one.detach() for name, one in plain.named_parameters()}
    got, want = (torch.func.functional_call(model, other, x) for model in (fused, plain))
    torch.testing.assert_close(got, want)
    for model in (plain, fused):
        model[0].weight = nn.Parameter(torch.ones_like(model[0].weight))
        loss_once(model, x).backward()
    torch.testing.assert_close(fused[0].weight.grad, plain[0].weight.grad)
