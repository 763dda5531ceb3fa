"""Own recurrent networks and PyTorch's modules of the same weights get the same findings."""

import numpy as np
import pytest
import vegrad

torch = pytest.importorskip("torch")
import vegrad.torch as ours  # noqa: E402
from torch import nn  # noqa: E402
from vegrad.flow.edits import Chrono, Orthogonal, SetCell, Steady, Truncate  # noqa: E402
from vegrad.flow.subject import Refusal  # noqa: E402
from vegrad.torch.subject import ModelSubject  # noqa: E402

from tests.torch.recurrent_models import LOSS, made  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")
UNITS, CLASSES = 32, 10


def twins(kind: str, cell: str) -> tuple[nn.Module, vegrad.RNN]:
    model = made(kind, num_layers=2)
    own = vegrad.RNN(12, UNITS, CLASSES, cell=cell, layers=2, loss="cross_entropy", seed=0)
    for name, parameter in model.named_parameters():
        ours_ = name.replace("cells.", "rnn.").replace("out.", "head.")
        own.parameters[ours_][...] = parameter.detach().numpy()
    return model, own


@pytest.mark.parametrize(("kind", "cell"), [("LSTM", "lstm"), ("GRU", "gru"), ("RNN", "tanh")])
@pytest.mark.parametrize(
    ("name", "factor"), [("weight_hh_l0", 20.0), ("weight_hh_l1", 1e-3), ("weight_ih_l0", 1.0)]
)
def test_the_same_findings(kind: str, cell: str, name: str, factor: float) -> None:
    model, own = twins(kind, cell)
    with torch.no_grad():
        model.get_parameter(f"cells.{name}").mul_(factor)
    own.parameters[f"rnn.{name}"][...] *= np.float32(factor)
    x = torch.randn(24, 40, 12, generator=torch.Generator().manual_seed(1))
    target = torch.arange(24) % CLASSES
    theirs = ours.diagnose(model, LOSS, x, target, resamples=0).findings
    found = vegrad.diagnose(own, x.numpy(), target.numpy()).findings
    assert [one.kind for one in found] == [one.kind for one in theirs]
    assert bool(found) == (factor != 1.0)
    for one, other in zip(found, theirs, strict=True):
        assert one.cause == other.cause
        for figure, value in other.evidence.items():
            assert one.evidence[figure] == pytest.approx(value, rel=1e-6)
        assert one.edit.factor == pytest.approx(other.edit.factor, rel=1e-3)


def test_edits_of_cells_in_a_model() -> None:
    model = made()
    subject = ModelSubject(model, LOSS)
    name, biases = "cells.weight_hh_l0", ("cells.bias_ih_l0", "cells.bias_hh_l0")
    assert subject.apply(Orthogonal((name,))).changed == (name,)
    block = model.cells.weight_hh_l0.detach()[:UNITS]
    torch.testing.assert_close(block @ block.T, torch.eye(UNITS), atol=1e-5, rtol=0)
    subject.apply(Chrono(biases, (UNITS, 2 * UNITS), 100, (0, UNITS)))
    times = model.cells.bias_ih_l0.detach()[UNITS : 2 * UNITS].exp()
    assert 1 <= float(times.min()) < 30 < 70 < float(times.max()) <= 99
    assert not model.cells.bias_hh_l0[: 2 * UNITS].any()
    plain = made("RNN")
    assert ModelSubject(plain, LOSS).apply(Steady((name,), 0.5, "tanh")).changed == (name,)
    assert isinstance(subject.apply(SetCell("gru")), Refusal)
    assert isinstance(subject.apply(Truncate(5, 10)), Refusal)
