"""Parameters that vegrad.torch's optimizers leave to PyTorch's own step, and mixed models."""

import copy

import pytest

torch = pytest.importorskip("torch")
import vegrad.torch as ours  # noqa: E402
from vegrad import clipping  # noqa: E402

from tests.torch.test_optim import CASES, Training, assert_equal, assert_same_state, make  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")


class Mixed(torch.nn.Module):
    """Parameters of every kind that PyTorch steps, and of the kinds that we step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dense = torch.nn.Linear(4, 4)
        self.brain = torch.nn.Linear(4, 4, dtype=torch.bfloat16)
        self.rotation = torch.nn.Parameter(torch.randn(4, dtype=torch.complex64))

    def loss(self) -> torch.Tensor:
        x = torch.linspace(-1, 1, 32).reshape(8, 4)
        x = self.brain(self.dense(x).bfloat16()).float()
        return (x * self.rotation).abs().square().mean()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("max_norm", [None, 0.05])
def test_parameters_of_other_kinds(case: str, max_norm: float | None) -> None:
    states, results = [], []
    for module in (ours, torch.optim):
        model = Mixed()
        clip = max_norm and module is ours and clipping.GlobalNorm(max_norm)
        optimizer = make(module, case, model.parameters(), **({"clip": clip} if clip else {}))
        for step in range(10):
            optimizer.zero_grad()
            model.loss().backward()
            if max_norm and not clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            optimizer.step()
            if step == 5:
                kept = copy.deepcopy(optimizer.state_dict())
                optimizer.load_state_dict(kept)
        results.append([one.detach() for one in model.parameters()])
        states.append(optimizer.state_dict())
    for got, want in zip(*results, strict=True):
        tolerance = 1e-2 if got.dtype == torch.bfloat16 else 1e-3
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance / 10)
    for place, kept in states[1]["state"].items():
        assert states[0]["state"][place].keys() == kept.keys()


def test_sparse_gradients() -> None:
    results = []
    for module in (ours, torch.optim):
        torch.manual_seed(0)
        table, last = torch.nn.Embedding(10, 3, sparse=True), torch.nn.Linear(3, 1)
        optimizer = module.SGD([*table.parameters(), *last.parameters()], 0.1)
        for _ in range(5):
            optimizer.zero_grad()
            last(table(torch.tensor([1, 2, 2]))).square().sum().backward()
            optimizer.step()
        results.append(table.weight.detach().clone())
        if module is ours:  # PyTorch's clip cannot do this
            optimizer.clip = clipping.GlobalNorm(1e-3)
            optimizer.step()
            assert optimizer.clipped.clipped
            assert table.weight.grad.coalesce().values().norm() <= 1e-3
    assert_equal(*results)


def test_other_devices() -> None:
    """Meta tensors stand for any other device."""
    dense, meta = torch.nn.Parameter(torch.zeros(3)), torch.zeros(3, device="meta")
    meta = torch.nn.Parameter(meta)
    optimizer = ours.SGD([dense, meta], 0.5, momentum=0.9)
    for grad in (dense, meta):
        grad.grad = torch.ones_like(grad)
    for _ in range(2):
        optimizer.step()
    assert torch.equal(dense.detach(), torch.full((3,), -0.5 - 0.95))
    assert optimizer.state[meta]["momentum_buffer"].device.type == "meta"


def test_a_model_that_moves_keeps_its_state() -> None:
    """A model that goes to bfloat16 and back goes from our kernels to PyTorch's and back."""
    training = Training()
    optimizer = ours.AdamW(training.model.parameters())
    training.run(optimizer, 3)
    training.model.to(torch.bfloat16)
    training.x, training.y = training.x.bfloat16(), training.y.bfloat16()
    for kept in optimizer.state.values():
        for name in ("exp_avg", "exp_avg_sq"):
            kept[name] = kept[name].bfloat16()
    training.run(optimizer, 3)
    training.model.float()
    training.x, training.y = training.x.float(), training.y.float()
    training.run(optimizer, 3)
    for kept in optimizer.state.values():
        assert kept["step"] == 9
        assert kept["exp_avg"].dtype == torch.float32


def test_layouts_of_weights() -> None:
    """With channels last the state has the weights' strides, as PyTorch's has."""
    results = []
    for module in (ours, torch.optim):
        torch.manual_seed(0)
        model = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        optimizer = module.AdamW(model.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.linspace(-1, 1, 3 * 36).reshape(1, 3, 6, 6)).square().sum().backward()
            optimizer.step()
        results.append(optimizer.state_dict())
    assert_same_state(*results)
