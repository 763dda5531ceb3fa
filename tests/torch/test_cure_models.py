"""vegrad.torch.cure on models whose layers are no chain, and on data of other kinds than rows."""

from dataclasses import dataclass
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from vegrad.torch.answers import answers  # noqa: E402

from tests.torch.patched import cure as checked  # noqa: E402

F = nn.functional

pytestmark = pytest.mark.usefixtures("one_torch_thread")

LOSS = nn.CrossEntropyLoss()


def task(rows: int = 256) -> tuple[Any, Any]:
    """Three clouds of points."""
    random = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3, (rows,), generator=random)
    centres = torch.randn(3, 16, generator=random)
    return centres[target] + 0.5 * torch.randn(rows, 16, generator=random), target


X, TARGET = task()


@dataclass
class Out:
    logits: Any
    hidden: Any


class Branches(nn.Module):
    """Attention over 4 parts of a row, in a residual stream; outputs of several kinds."""

    def __init__(self, kind: str = "plain") -> None:
        super().__init__()
        self.kind = kind
        self.enter = nn.Linear(4, 24)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(24, 2, 48, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(3)
        )
        self.out = nn.Linear(24, 3)

    def forward(self, x: Any) -> Any:
        h = self.enter(x.unflatten(1, (4, 4)))
        for block in self.blocks:
            h = block(h)
        y = self.out(h.mean(1))
        made = {"plain": y, "tuple": (y, h), "mapping": {"logits": y}, "dataclass": Out(y, h)}
        return made[self.kind]


def loss_of(kind: str) -> Any:
    def loss(output: Any, target: Any) -> Any:
        logits = {
            "plain": lambda: output,
            "tuple": lambda: output[0],
            "mapping": lambda: output["logits"],
            "dataclass": lambda: output.logits,
        }[kind]()
        return LOSS(logits, target)

    return loss


def too_large(model: Any) -> Any:
    """Every matrix drawn from N(0, 1)."""
    torch.manual_seed(3)
    with torch.no_grad():
        for one in model.parameters():
            if one.ndim > 1 and not one.is_complex() and one.requires_grad:
                one.normal_()
    return model


def made(kind: str = "plain") -> Any:
    torch.manual_seed(0)
    return Branches(kind)


def adam(parameters: Any) -> Any:
    return torch.optim.Adam(parameters, lr=3e-3)


def cure(model: Any, x: Any = X, target: Any = TARGET, loss: Any = LOSS, **options: Any) -> Any:
    found = checked(model, loss, x, target, **{"steps": 100, "optimizer": adam, **options})
    assert found.cost <= 1.5
    assert str(found)
    assert found.to_dict()
    return found


# Remedies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "tuple", "mapping", "dataclass"])
def test_weights_that_are_too_large_are_drawn_again(kind: str) -> None:
    x = {"plain": X, "tuple": (X,), "mapping": {"x": X}, "dataclass": X}[kind]
    model = too_large(made(kind))
    found = cure(model, x, loss=loss_of(kind))
    assert found.cured, str(found)
    assert found.goal.kind == "cross_entropy"
    assert found.proof.accuracy[1] >= found.goal.wanted
    assert found.model is model


def test_what_the_diagnosis_says_is_tried_first() -> None:
    model = made()
    with torch.no_grad():
        model.blocks[1].linear2.weight.mul_(3e3)
    found = cure(model)
    assert not found.before.healthy
    said = [one for one in found.attempts if one.name == "what the diagnosis says"]
    assert "blocks.1.linear2.weight" in said[0].change
    assert said[0].after is not None


def test_right_classes_at_a_loss_above_a_guess_are_no_reason_to_leave_it() -> None:
    model = made()
    with torch.no_grad():
        model.out.weight.mul_(1e4)
    found = cure(model)
    assert found.proof.accuracy[0] > 0.5
    assert found.proof.loss[0] > found.goal.guess > found.proof.loss[1]
    assert found.cured, str(found)


def test_inputs_among_several_are_scaled() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = made()

        def forward(self, mask: Any, x: Any) -> Any:
            return self.net(x * mask)

    x = {"mask": torch.ones(len(X), 1), "x": 60 * X + 128}
    found = cure(Two(), x)
    assert "scale the columns of x['x']" in found.summary, str(found)
    names = {"torch": torch, "x": x}
    exec(found.patch, names)
    assert torch.equal(names["x"]["mask"], x["mask"])
    assert float(names["x"]["x"].std()) == pytest.approx(1.0, abs=0.05)
    assert float(x["x"].mean()) > 100


class Gated(nn.Module):
    """Two ways that are multiplied; a sigmoid within each, and one at the end."""

    def __init__(self, activation: Any) -> None:
        super().__init__()
        self.ways = nn.ModuleList(
            nn.Sequential(
                nn.Linear(16, 32), activation(), nn.Linear(32, 32), activation(), nn.Linear(32, 32)
            )
            for _ in range(2)
        )
        self.out, self.end = nn.Linear(64, 1), nn.Sigmoid()

    def forward(self, x: Any) -> Any:
        one, other = (way(x) for way in self.ways)
        return self.end(self.out(torch.cat([one * other, other], 1)))


def test_sigmoids_within_may_go_but_not_that_of_the_output() -> None:
    torch.manual_seed(0)
    target = (TARGET == 1).float()[:, None]
    with_sigmoids = Gated(nn.Sigmoid)
    found = cure(with_sigmoids, target=target, loss=F.binary_cross_entropy, steps=60)
    tried = [one for one in found.attempts if one.name == "no sigmoids"]
    assert tried, str(found)
    assert "GELU in place of 4 sigmoids" in tried[0].change


def test_not_a_number_is_drawn_again_whatever_the_loss() -> None:
    model = made()
    with torch.no_grad():
        model.out.weight[0, 0] = float("nan")

    def own(output: Any, target: Any) -> Any:
        return (output - F.one_hot(target, 3)).abs().pow(1.5).mean()

    found = cure(model, loss=own)
    assert found.before.verdict == "nonfinite"
    assert found.cured, str(found)
    assert torch.isfinite(model.out.weight).all()


def test_a_cure_that_failed_repeats_what_no_change_can_mend() -> None:
    def broken(output: Any, target: Any) -> Any:
        return LOSS(output, target) / torch.zeros(())

    found = cure(made(), loss=broken, steps=20)
    assert not found.reached
    assert found.before.findings[0].message in found.about[-1]
    assert found.before.findings[0].advice in found.about[-1]
    assert "more width" not in str(found)


# Rows ------------------------------------------------------------------------------------------


class Graph(nn.Module):
    """Nodes that get the mean of their neighbours; the edges are the model's own."""

    def __init__(self, nodes: int) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(1)
        self.edges = torch.randint(0, nodes, (2, 4 * nodes), generator=random)
        self.first, self.second = nn.Linear(16, 24), nn.Linear(24, 3)

    def forward(self, x: Any) -> Any:
        for layer in (self.first, self.second):
            h = layer(x)
            x = h + torch.zeros_like(h).index_add(0, self.edges[0], h[self.edges[1]].tanh() / 4)
        return x


class Among(nn.Module):
    """Rows that see the mean of all rows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 3)

    def forward(self, x: Any) -> Any:
        return self.linear(x - x.mean(0))


def in_groups() -> Any:
    layers = [nn.Linear(16, 24), nn.BatchNorm1d(24, track_running_stats=False), nn.Dropout(0.1)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(24, 3))


@pytest.mark.parametrize(
    ("make", "rows", "batch"),
    [
        (lambda: Graph(256), None, 1),
        (Among, None, 1),
        (made, None, 32),
        (in_groups, None, 32),
        (lambda: too_large(made()), None, 32),
        (Among, True, 32),
        (made, False, 1),
    ],
)
def test_rows_that_depend_on_each_other_are_one_batch(make: Any, rows: Any, batch: int) -> None:
    torch.manual_seed(0)
    assert cure(make(), steps=60, rows=rows).batch_size == batch


def test_a_part_of_a_graph_is_never_run() -> None:
    found = checked(Graph(20), LOSS, X[:20], TARGET[:20], steps=20, optimizer=adam)
    assert found.batch_size == 1  # so that looks at 20 rows cost more than steps, by the seed


def test_rows_must_be_there() -> None:
    with pytest.raises(ValueError, match="the same number of rows"):
        cure(made(), X, TARGET[:5], rows=True)


# Accuracy and goals ----------------------------------------------------------------------------


@pytest.mark.parametrize("rows", ["no", 0, 5])
def test_rows_must_be_true_false_or_none(rows: Any) -> None:
    with pytest.raises(TypeError, match="rows must be True, False or None, not "):
        cure(made(), rows=rows)


def test_the_accuracy_is_that_of_the_labels_that_the_loss_compares() -> None:
    """Shifted by one place, with some to be ignored."""
    words = torch.randint(1, 5, (8, 6), generator=torch.Generator().manual_seed(2))
    words[:, -2:] = 0
    logits = F.one_hot(words.roll(-1, 1), 5).float()  # each place knows the next word

    def shifted(output: Any, target: Any) -> Any:
        return F.cross_entropy(
            output[:, :-1].flatten(0, 1), target[:, 1:].flatten(), ignore_index=0
        )

    found = answers(nn.Identity(), shifted, logits, words)
    assert (found.kind, found.accuracy) == ("cross_entropy", 1.0)
    assert len(found.calls[0].labels) == 8 * 3

    def by_hand(output: Any, target: Any) -> Any:
        return -output.log_softmax(-1).gather(-1, target[..., None]).mean()

    assert answers(nn.Identity(), by_hand, logits, words).calls == ()


@pytest.mark.parametrize("level", [0.5, 0.0])
def test_two_classes_are_told_apart_where_the_loss_does(level: float) -> None:
    chances = torch.tensor([0.2, 0.4, 0.3, 0.9])
    target = torch.tensor([0.0, 0.0, 1.0, 1.0])
    loss = F.binary_cross_entropy if level else F.binary_cross_entropy_with_logits
    found = answers(nn.Identity(), loss, chances, target)
    assert found.accuracy == (0.75 if level else 0.5)


def test_next_words_are_learnt_to_an_accuracy() -> None:
    class Next(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.cells = nn.Embedding(8, 16), nn.GRU(16, 24, batch_first=True)
            self.out = nn.Linear(24, 8)

        def forward(self, x: Any) -> Any:
            return self.out(self.cells(self.table(x))[0])

    def shifted(output: Any, target: Any) -> Any:
        return F.cross_entropy(output[:, :-1].transpose(1, 2), target[:, 1:])

    random = torch.Generator().manual_seed(0)
    words = (torch.randint(0, 8, (128, 1), generator=random) + 3 * torch.arange(10)) % 8
    torch.manual_seed(0)
    found = cure(Next(), words, words, shifted, steps=150)
    assert found.goal.kind == "cross_entropy"
    assert found.reached, str(found)


def test_a_loss_below_zero_is_halved_away_from_it() -> None:
    def own(output: Any, target: Any) -> Any:
        return -output.gather(1, target[:, None]).tanh().mean() - 5.0

    found = cure(made(), loss=own, steps=20)
    assert found.goal.wanted < -7


# Models of other kinds -------------------------------------------------------------------------


class Waves(nn.Module):
    """Complex parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(9, 9, dtype=torch.cfloat) / 3)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Any) -> Any:
        return self.out(torch.fft.irfft(torch.fft.rfft(x) @ self.matrix, 16))


class Slope(nn.Module):
    """A gradient inside of forward()."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 3))

    def forward(self, x: Any) -> Any:
        x = x.detach().requires_grad_()
        y = self.net(x)
        return y + torch.autograd.grad(y.sum(), x, create_graph=True)[0][:, :3]


class Keeps(nn.Module):
    """A state that is a tensor of the last pass's graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(16, 24), nn.Linear(24, 3)

    def forward(self, x: Any) -> Any:
        self.state = self.first(x).tanh()
        return self.out(self.state)


def frozen() -> Any:
    model = made()
    for one in model.enter.parameters():
        one.requires_grad_(False)
    return model


def kept() -> Any:
    model = Keeps()
    model(X)
    return model


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("make", [Waves, frozen, kept, lambda: made().eval(), Slope])
def test_models_of_any_kind_are_gone_through(make: Any, large: bool) -> None:
    torch.manual_seed(0)
    model = too_large(make()) if large else make()
    training = model.training
    found = cure(model, steps=30)
    assert model.training == training
    assert found.attempts or found.reached


def test_a_loss_without_a_target() -> None:
    found = cure(made(), X, None, lambda output, target: output.square().mean(), steps=20)
    assert found.batch_size == 1
    assert found.reached
