"""What PyTorch's tools ask of a module: scripts, batches of gradients, hooks of all modules."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn.modules import module as modules  # noqa: E402
from vegrad.torch import fuse  # noqa: E402


class Reader(nn.Module):
    """A model with a recurrent module and a small network."""

    def __init__(self, cell: type[nn.RNNBase]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell = cell(3, 4, batch_first=True)
        self.head = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))

    def forward(self, x):  # type: ignore[no-untyped-def]
        return self.head(self.cell(x)[0])


def fused(model: Reader) -> Reader:
    model.cell, model.head = fuse(model.cell), fuse(model.head)
    return model


scripted = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")


@scripted
@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
def test_scripts(cell: Any) -> None:
    """The plain layers are compiled, with the same parameters."""
    x, model = torch.randn(2, 6, 3), fused(Reader(cell)).eval()
    want = model(x)
    script = torch.jit.script(model)
    torch.testing.assert_close(script(x), want)
    assert not script.head.training
    with torch.no_grad():
        model.head[0].weight.mul_(2)
    torch.testing.assert_close(script(x), model(x))
    assert (type(model.cell), type(model.head)) == (cell, nn.Sequential)  # as the docs say


@scripted
def test_a_script_of_a_network_alone() -> None:
    net, x = fuse(nn.Sequential(nn.Linear(3, 4), nn.ReLU())), torch.randn(5, 3)
    script = torch.jit.script(net)
    torch.testing.assert_close(script(x), net(x))
    assert type(net).__name__ == "FusedMLP"
    assert pickle.loads(pickle.dumps(net)).state_dict().keys() == script.state_dict().keys()


PARTS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "FusedMLP": lambda: (nn.Sequential(nn.Linear(3, 4), nn.Tanh()), torch.randn(5, 3)),
    "fused recurrent module": lambda: (nn.GRU(3, 4), torch.randn(5, 2, 3)),
}


@pytest.mark.parametrize("name", PARTS)
def test_batches_of_gradients_are_a_clear_error(name: str) -> None:
    module, x = PARTS[name]()
    net = fuse(module)

    def out(x: Any) -> Any:
        found = net(x)
        return found[0] if isinstance(found, tuple) else found

    x.requires_grad_()
    result = out(x)
    eye = torch.eye(result.numel()).view(-1, *result.shape)
    said = f"a {name} takes one gradient at a time, and no batch of them"
    with pytest.raises(RuntimeError, match=said):
        torch.autograd.grad(result, x, eye, is_grads_batched=True, retain_graph=True)
    with pytest.raises(RuntimeError, match=said):
        torch.func.vmap(lambda g: torch.autograd.grad(result, x, g, retain_graph=True))(eye)
    with pytest.raises(RuntimeError, match=said):
        torch.autograd.functional.jacobian(out, x, vectorize=True)
    # One at a time it works, also after the error, and torch.func runs the layers.
    rows = [torch.autograd.grad(result, x, one, retain_graph=True)[0] for one in eye]
    whole = torch.func.jacrev(out)(x.detach())
    torch.testing.assert_close(torch.stack(rows), whole.reshape(-1, *x.shape))


KINDS = ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"]


@pytest.mark.filterwarnings("ignore:.*Full backward hook.*")
@pytest.mark.parametrize("kind", KINDS)
def test_hooks_of_all_modules(kind: str) -> None:
    """They are called for every layer: while there are any, the layers run one by one."""
    seen: list[type] = []
    plain, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(5, 3)
    net = fuse(plain)
    register = getattr(modules, f"register_module_{kind}")
    handle = register(lambda module, *_: seen.append(type(module)))
    try:
        net(x).sum().backward()
    finally:
        handle.remove()
    assert sorted(one.__name__ for one in seen) == ["FusedMLP", "Linear", "Linear", "Tanh"]
    seen.clear()
    net(x).sum().backward()
    assert not seen
    assert net(x).grad_fn.name() != plain(x).grad_fn.name()  # one pass again
