"""Read passes of PyTorch models as graphs, and run them as if something were changed."""

import copy
import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import vegrad.torch as ours  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812
from vegrad.flow.edits import Initialize, Scale, ScaleData, Shift, Zero  # noqa: E402
from vegrad.flow.reading import INPUT  # noqa: E402
from vegrad.torch.reading.reading import read  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")

X = torch.randn(32, 6, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(32) % 4


class Net(nn.Module):
    """Registered in another order than it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(16, 4)
        self.attention = nn.ModuleDict({n: nn.Linear(16, 16) for n in "vkq"})
        self.norm, self.drop = nn.LayerNorm(16), nn.Dropout(0.5)
        self.first = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.first(x))
        q, k, v = (self.attention[n](self.norm(h)) for n in "qkv")
        h = h + self.drop((q @ k.mT / 4).softmax(-1) @ v)
        return self.out(h.mean(1))


def made() -> Net:
    torch.manual_seed(0)
    return Net()


def graph(model: nn.Module, x: Any = X, loss: Any = F.cross_entropy) -> Any:
    return read(model, loss, x, LABELS, resamples=0, seed=0)


def test_operations_stand_in_run_order_with_sizes_as_plain_autograd_has_them() -> None:
    model = made().eval()
    found = graph(model)
    kinds = [one.kind for one in found.operations]
    assert kinds[:2] == ["linear", "tanh"]
    assert kinds.index("softmax") < kinds.index("mean")
    assert [m.name for m in found.modules if m.weighted] == [
        "first", "norm", "attention.q", "attention.k", "attention.v", "out",
    ]  # fmt: skip
    kept: dict[str, torch.Tensor] = {}

    def keep(name: str, output: torch.Tensor) -> None:
        output.retain_grad()
        kept[name] = output

    for name in ("first", "attention.v", "out"):
        module = model.get_submodule(name)
        module.register_forward_hook(lambda m, i, o, name=name: keep(name, o))
    F.cross_entropy(model(X), LABELS).backward()
    for name, output in kept.items():
        one = next(o for o in found.operations if o.name == name and o.kind == "linear")
        assert one.delta_log2 == pytest.approx(math.log2(float(output.grad.norm())), abs=1e-4)
        rms = float(output.detach().square().mean().sqrt())
        assert one.rms_log2 == pytest.approx(math.log2(rms), abs=1e-4)
        gradient = model.get_submodule(name).weight.grad.norm()
        known = found.parameters[f"{name}.weight"].gradient_log2
        assert known == pytest.approx(math.log2(float(gradient)), abs=1e-4)


def test_flat_elements_and_alike_rows_are_counted() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh())
    with torch.no_grad():
        model[0].bias.fill_(-50.0)
        model[2].bias.fill_(3.0)
    found = {one.kind: one for one in graph(model, X[:, 0]).operations}
    assert found["relu"].flat == 1.0
    assert found["tanh"].flat == 1.0
    assert found["tanh"].alike == pytest.approx(1.0)  # nothing but biases comes through
    fresh = graph(made()).operations
    assert fresh[0].alike < 0.5
    assert not any(one.flat > 0.5 for one in fresh)


def test_edges_lead_to_what_an_operation_was_made_of() -> None:
    found = graph(made())
    places = {one.name: n for n, one in enumerate(found.operations) if one.kind == "linear"}
    assert found.operations[places["first"]].below == (INPUT,)
    (norm,) = found.operations[places["attention.q"]].below
    assert found.operations[norm].kind == "layer_norm"
    total = next(one for one in found.operations if one.kind == "add")
    assert len(total.below) == 2


def test_roles_are_told_by_what_a_parameter_is_used_for() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.lstm = nn.Embedding(9, 16), nn.LSTM(16, 8, batch_first=True)
            self.matrix = nn.Parameter(torch.randn(8, 4))
            self.gain, self.norm = nn.Parameter(torch.ones(16)), nn.LayerNorm(16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.lstm(self.norm(self.table(x)) * self.gain)[0][:, -1]
            return out @ self.matrix

    tokens = torch.arange(32 * 5).reshape(32, 5) % 9
    found = graph(Mixed(), tokens).parameters
    roles = {name: one.role for name, one in found.items()}
    assert roles["table.weight"] == "table"
    assert roles["matrix"] == "map"
    assert found["matrix"].fans == (8, 4)
    assert roles["norm.weight"] == "norm"
    assert roles["norm.bias"] == roles["lstm.bias_ih_l0"] == "bias"
    assert roles["lstm.weight_hh_l0"] == "recurrent"
    assert roles["gain"] == ""


@pytest.mark.parametrize("edit", [
    Scale(("first.weight",), 10.0), Zero(("attention.v.weight",)), Shift(("first.bias",), 3.0),
    Initialize("default"), ScaleData(),
])  # fmt: skip
def test_a_what_if_measures_what_the_edit_does_and_leaves_the_model_alone(edit: Any) -> None:
    model = made()
    before = copy.deepcopy(model.state_dict())
    pointers = [one.data_ptr() for one in model.parameters()]
    versions = [one._version for one in model.parameters()]
    random = torch.get_rng_state()
    what_if = graph(model).what_if
    now, then = what_if.effect(None), what_if.effect(edit)
    assert now == what_if.effect(None)  # dropout's masks are the same
    assert then != now
    assert torch.equal(torch.get_rng_state(), random)
    assert [one.data_ptr() for one in model.parameters()] == pointers
    assert [one._version for one in model.parameters()] == versions
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())
    assert all(one.grad is None for one in model.parameters())


def test_values_are_put_back_where_the_model_raises() -> None:
    model = made()
    found = graph(model)
    before = model.first.weight.detach().clone()
    model.out.forward = None
    with pytest.raises(TypeError):
        found.what_if.effect(Scale(("first.weight",), 10.0))
    assert torch.equal(model.first.weight, before)


def test_a_what_if_of_what_cannot_be_done_has_no_effect() -> None:
    what_if = graph(made()).what_if
    assert what_if.effect(Initialize("no such scheme")) is None


def test_a_diagnosis_keeps_no_model_alive() -> None:
    import gc
    import weakref

    model = made()
    found = ours.diagnose(model, F.cross_entropy, X, LABELS)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert found.healthy


def test_a_monitors_rows_stand_in_run_order() -> None:
    model = made()
    monitor = ours.Monitor(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(X), LABELS).backward()
        optimizer.step()
    names = [row["module"] for row in monitor.report().rows]
    assert names == ["first", "norm", "attention.q", "attention.k", "attention.v", "out"]
    monitor.remove()
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_saturated_attention_is_found() -> None:
    model = made()
    with torch.no_grad():
        for name in "qk":
            model.attention[name].weight.mul_(20.0)  # each within a decade of what is usual
    (finding,) = ours.diagnose(model, F.cross_entropy, X, LABELS).findings
    assert (finding.kind, finding.cause) == ("saturated", "saturated-attention")


class Deep(nn.Module):
    """A network whose gradients leave float32, which is no chain for its product."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16, bias=False) for _ in range(40))
        self.gate, self.out = nn.Linear(16, 16), nn.Linear(16, 4)
        with torch.no_grad():
            for layer in self.layers:
                layer.weight.mul_(scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x
        for layer in self.layers:
            h = torch.tanh(layer(h))
        return self.out((h @ h.mT) @ self.gate(x)).mean(1)


def place_in_autograd(leaf: torch.Tensor) -> object:
    """Return where a leaf's gradients are gathered: DistributedDataParallel has its hooks there."""
    return leaf.view_as(leaf).grad_fn.next_functions[0][0]  # type: ignore[union-attr]


def test_gradients_that_float32_loses_are_measured_in_float64() -> None:
    torch.manual_seed(0)
    model = Deep(0.1)
    places = [place_in_autograd(one) for one in model.parameters()]
    found = graph(model)
    assert [place_in_autograd(one) for one in model.parameters()] == places
    sizes = found.parameters["layers.0.weight"].gradient_log2, found.operations[0].delta_log2
    twin = copy.deepcopy(model).double()
    F.cross_entropy(twin(X.double()), LABELS).backward()
    exact = math.log2(float(twin.layers[0].weight.grad.norm()))
    assert exact < -150  # below float32's least
    assert sizes[0] == pytest.approx(exact, abs=1e-6)
    assert math.isfinite(sizes[1])
    assert all(one.dtype is torch.float32 for one in model.parameters())
    assert ours.diagnose(model, F.cross_entropy, X, LABELS).verdict == "vanishing"


def test_what_cannot_be_followed_is_said() -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.out = nn.Linear(16, 8), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(torch.func.vmap(self.inner)(x))

    found = ours.diagnose(Rows(), F.cross_entropy, X[:, 0], LABELS)
    assert found.healthy
    assert any("what inner did could not be followed" in note for note in found.notes)


class Reversed(torch.autograd.Function):
    """Run a module again on the way back, as reversible layers do, which writes to `.grad`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, module: nn.Module) -> torch.Tensor:
        ctx.module, ctx.x = module, x.detach()
        with torch.no_grad():
            return module(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        x = ctx.x.requires_grad_()
        with torch.enable_grad():
            ctx.module(x).backward(gradient)
        return x.grad, None


def test_layers_that_write_gradients_by_themselves_are_read_and_leave_none() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner, self.out = (nn.Linear(16, 16) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(Reversed.apply(self.first(x), self.inner))

    torch.manual_seed(0)
    model = Net()
    own = torch.ones_like(model.inner.weight)
    model.inner.weight.grad = own
    now = graph(model, X[:, 0]).what_if.effect(None)
    assert all(size > -20 for size in now.gradients_log2.values())
    assert model.inner.weight.grad is own
    assert bool((own == 1).all())
    assert model.first.weight.grad is None
