"""Runs that are judged by their steps: sick ones by what is wrong, healthy ones never."""

import json
from collections.abc import Callable, Mapping
from math import inf, nan
from pathlib import Path

import numpy as np
import pytest
import vegrad
from vegrad.diagnosis.noted import noted
from vegrad.flow.finding import Finding
from vegrad.recordings.run import RunDiagnosis
from vegrad.runs.run import Run

Array = np.ndarray


def run_of(
    loss: Array,
    norm: Array | None = None,
    rate: Array | None = None,
    clipped: Array | None = None,
    **more: object,
) -> Run:
    nothing = np.full(len(loss), nan)
    lost = {} if np.isfinite(loss).all() else {"loss": float(np.argmax(~np.isfinite(loss)))}
    columns: dict[str, Array] = {
        "loss": loss,
        "gradient_norm": nothing if norm is None else norm,
        "clipped_norm": nothing if clipped is None else clipped,
        "learning_rate": nothing if rate is None else rate,
        "update_ratio": nothing,
        "validation_loss": nothing,
    }
    given = {"step": np.arange(len(loss), dtype=float), "nonfinite": lost, **columns, **more}
    return Run(**given)  # type: ignore[arg-type]


def judged(loss: Array, norm: Array | None = None, **more: object) -> RunDiagnosis:
    return vegrad.diagnose_run(run_of(loss, norm, **more))  # type: ignore[arg-type]


def drawn(seed: int, size: int = 400) -> Array:
    return np.random.default_rng(seed).normal(size=size)


def falling(size: int = 400, to: float = 0.3) -> Array:
    return 2.3 * (to + (1 - to) * np.exp(-np.arange(size) / 80))


# Levels of losses as trainings of many kinds have them, with the scatter of batches.
HEALTHY: Mapping[str, Callable[[int], Array]] = {
    "classes": lambda seed: falling() * np.exp(0.1 * drawn(seed)),
    "small batches": lambda seed: falling() * np.exp(0.6 * drawn(seed)),
    "tuned": lambda seed: (1.3 - 0.04 * np.arange(400) / 400) * np.exp(0.1 * drawn(seed)),
    "tuned, batches of one": lambda seed: (
        (1.9 - 0.2 * np.arange(400) / 400) * np.exp(0.5 * drawn(seed))
    ),
    "heavy tails": lambda seed: (
        falling() * np.exp(0.3 * drawn(seed))
        + 0.05 * np.abs(np.random.default_rng(seed).standard_cauchy(400))
    ),
    "learned by heart": lambda seed: falling(400, 1e-6) * np.exp(0.5 * drawn(seed)),
    "up and down": lambda seed: falling() * (1 + 0.3 * np.sin(np.arange(400) / 20)),
    "a plateau, then a fall": lambda seed: (
        (2.3 - 2.0 / (1 + np.exp(-(np.arange(400) - 250) / 20))) * np.exp(0.05 * drawn(seed))
    ),
    "means of many, few entries": lambda seed: falling(25) * np.exp(0.02 * drawn(seed, 25)),
    "one spike": lambda seed: (
        falling() * np.exp(0.1 * drawn(seed)) + 20.0 * (np.arange(400) == 200)
    ),
}


@pytest.mark.parametrize("kind", HEALTHY)
def test_healthy_losses_have_no_finding(kind: str) -> None:
    for seed in range(30):
        found = judged(HEALTHY[kind](seed), np.exp(0.3 * drawn(seed + 99))[: len(HEALTHY[kind](0))])
        assert found.healthy, (seed, found)


def test_what_was_looked_at_is_said() -> None:
    found = judged(falling(), rate=np.full(400, 0.1))
    assert found.sentence == (
        "of 400 steps that were logged, the loss and the learning rate were looked at: the loss "
        "went from 2.26 to 0.7013 (medians of 5 steps); not recorded: the gradients' norm, the "
        "norm after a clip"
    )
    assert "too few entries (3)" in judged(falling(3)).sentence
    rewarded = judged(falling(), about={"rewarded": True})
    assert "not judged, as it need not fall" in rewarded.sentence


@pytest.mark.parametrize("seed", range(5))
def test_a_loss_that_rises_far(seed: int) -> None:
    loss = np.concatenate([falling(300), 0.7 * np.exp(np.arange(100) / 50)])
    loss *= np.exp(0.1 * drawn(seed))
    (one,) = judged(loss).findings
    assert (one.kind, one.cause) == ("overshooting", "")
    norm = np.concatenate([np.ones(380), np.full(20, 9.0)])
    (one,) = judged(loss, norm, rate=np.full(400, 0.3)).findings
    assert one.cause == "learning-rate-high"
    assert "the gradients' norm is 9 times its usual" in one.message
    assert "from 0.3" in one.advice


def test_a_loss_that_was_thrown_up_at_once() -> None:
    loss = np.concatenate([[2.3], np.full(99, 900.0)]) * np.exp(0.1 * drawn(0, 100))
    (one,) = judged(loss).findings
    assert one.cause == "learning-rate-high"
    assert one.evidence["highest"] > 100 * one.evidence["first"]


def test_losses_that_are_thrown_up_again_and_again() -> None:
    loss = falling() * np.exp(0.1 * drawn(0))
    loss[[50, 200]] = 5e9, 4e13
    assert judged(loss).healthy  # two batches may be odd
    loss[300] = 1e6
    (one,) = judged(loss).findings
    assert (one.kind, one.severity, one.cause) == ("overshooting", "warning", "")
    assert one.message.startswith("3 of 400 losses that were logged are far beyond the usual")
    assert "at step 50, the highest 4e+13" in one.message
    assert judged(loss, about={"rewarded": True}).healthy


def test_gradients_that_fade_towards_the_input(tmp_path: Path) -> None:
    loss = 1.6 * np.exp(0.05 * drawn(0, 80))
    names = tuple(f"{n}.{kind}" for n in range(8) for kind in ("weight", "bias"))
    sizes = np.linspace(-30, 0, 16) + drawn(1, 80 * 16).reshape(80, 16)
    (one,) = judged(loss, modules=names, gradient_log2=sizes).findings
    assert (one.kind, one.severity) == ("vanishing", "critical")
    assert one.evidence["count"] == 8
    assert 7.5 < one.evidence["decades"] < 9.5
    assert "for 7.weight to" in one.message
    assert "for 0.weight, and the loss stands: it was 1.6" in one.message
    mixed = sizes[:, np.random.default_rng(2).permutation(16)]
    for its_loss, its_names, its_sizes in (
        (np.geomspace(1.6, 1.2, 80), names, sizes),  # it learns
        (loss, names, sizes / 4),
        (loss, names[:8], sizes[:, :8]),
        (loss, names, mixed),  # whose order is not that of the depth
        (loss, tuple(f"{name}s" for name in names), sizes),
    ):
        assert judged(its_loss, modules=its_names, gradient_log2=its_sizes).healthy
    path = tmp_path / "metrics.csv"
    head = ["epoch", "step", "train_loss"] + [f"grad_2.0_norm/{n}.weight" for n in range(12)]
    rows = [[0, n, one, *np.geomspace(1e-9, 1, 12)] for n, one in enumerate(loss.tolist())]
    places = sorted(range(len(head)), key=lambda place: head[place])  # as Lightning writes it
    lines = [",".join(str(row[place]) for place in places) for row in [head, *rows]]
    path.write_text("\n".join(lines))
    (one,) = vegrad.diagnose_run(path).findings
    assert "fade by 9.0 decades" in one.message
    assert vegrad.read_run(path).modules[-1] == "11.weight"


def test_few_losses_are_not_called_standing_still() -> None:
    found = judged(2.8 * np.exp(0.1 * np.abs(drawn(3, 28))) * np.linspace(1, 1.2, 28))
    assert found.healthy
    assert "too few entries (28) to judge by that it has not fallen" in found.sentence
    assert "was 2.5, a single entry" in judged(np.array([2.5])).sentence


def test_a_loss_that_is_no_number() -> None:
    loss = falling()
    loss[300:] = nan
    (one,) = judged(loss).findings
    assert (one.kind, one.cause, one.severity) == ("nonfinite", "", "critical")
    assert "not finite from step 300 on" in one.message
    loss[200:300] = np.geomspace(1, 1e4, 100)
    (one,) = judged(loss).findings
    assert (one.kind, one.cause) == ("nonfinite", "learning-rate-high")
    loss = falling()
    loss[100] = inf
    (one,) = judged(loss).findings
    assert one.severity == "warning"
    assert "again later" in one.message


def test_gradients_that_are_no_number() -> None:
    norm = np.ones(100)
    norm[:4] = inf  # as a scaler of the loss finds its factor
    assert judged(falling(100), norm, nonfinite={"gradient_norm": 0.0}).healthy
    norm[40:] = nan
    (one,) = judged(falling(100), norm, nonfinite={"gradient_norm": 40.0}).findings
    assert one.kind == "nonfinite"
    assert "from step 40 on" in one.message
    assert one.evidence["count"] == 60


def test_gradients_of_nothing() -> None:
    norm = np.ones(100)
    norm[60:] = 0
    (one,) = judged(np.full(100, 2.3), norm).findings
    assert (one.kind, one.evidence["count"]) == ("vanishing", 40)
    learned = np.geomspace(2.3, 1e-6, 100)
    assert judged(learned, norm).healthy
    assert judged(np.full(100, 2.3), norm, about={"rewarded": True}).healthy


def test_gradients_that_blow_up_or_fade_without_a_gain() -> None:
    loss = 2.3 * np.exp(0.05 * drawn(1, 100))
    (one,) = judged(loss, np.geomspace(1, 1e4, 100)).findings
    assert one.kind == "exploding"
    (one,) = judged(loss, np.geomspace(1, 1e-6, 100)).findings
    assert one.kind == "vanishing"
    assert judged(falling(100), np.geomspace(1, 1e4, 100)).healthy


def test_a_rate_of_nothing() -> None:
    rate = np.linspace(0.1, 0, 100)
    assert judged(falling(100), rate=rate).healthy  # a schedule's last step
    rate[70:] = 0
    (one,) = judged(falling(100), rate=rate).findings
    assert (one.kind, one.cause, one.evidence["step"]) == ("stalled", "learning-rate-low", 70)
    group = {"names": {"learning_rate": "lr-Adam/pg1"}}
    assert judged(falling(100), rate=rate, about=group).healthy


def test_a_loss_that_stands() -> None:
    loss = 0.693 * np.exp(0.003 * drawn(3, 200))
    (one,) = judged(loss, rate=np.full(200, 0.1)).findings
    assert (one.kind, one.severity) == ("stalled", "warning")
    assert "than 0.1" in one.advice
    norm = np.ones(200)
    (one,) = judged(loss, norm, clipped=1e-5 * norm).findings
    assert one.cause == "clip-too-small"
    assert judged(loss, about={"rewarded": True}).healthy
    assert judged(-loss).healthy


def test_what_was_found_while_it_ran_is_told_first() -> None:
    met = noted(7, Finding(kind="dead", severity="critical", cause="dead-units", says="they died"))
    found = judged(falling(), noted=(met, met))
    assert [one.message for one in found.findings] == ["they died"]
    ignored = vegrad.diagnose_run(run_of(falling(), noted=(met,)), ignore=["dead-units"])
    assert ignored.healthy


def test_it_can_be_printed_drawn_and_saved(tmp_path: Path) -> None:
    path = tmp_path / "trainer_state.json"
    steps = [{"step": 10 * n, "loss": loss} for n, loss in enumerate(falling(50).tolist())]
    path.write_text(json.dumps({"log_history": steps}))
    found = vegrad.diagnose_run(path)
    assert str(found).startswith(f"{path}, Hugging Face Trainer\n\nhealthy: of 50 steps")
    html = found.to_html(tmp_path / "page.html")
    assert "The training, step by step" in html
    assert len(html) < 300_000
    assert found.to_dict()["healthy"]
    pytest.importorskip("matplotlib")
    found.plot(tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 1000


def test_what_cannot_be_judged(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="run must be a Run or the path of one, not int"):
        vegrad.diagnose_run(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="it has no step yet"):
        judged(np.zeros(0))
    with pytest.raises(ValueError, match="neither losses of the training nor norms of gradients"):
        vegrad.diagnose_run(run_of(np.full(3, nan), nonfinite={}))
    with pytest.raises(ValueError, match="every cause in ignore"):
        vegrad.diagnose_run(run_of(falling()), ignore=["no such cause"])
    with pytest.raises(FileNotFoundError):
        vegrad.diagnose_run(tmp_path / "missing")


def test_a_spike_is_told_of_and_is_no_finding(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    losses = (falling(60) * np.exp(0.02 * drawn(0, 60))).tolist()
    losses[30] = 40.0
    rows = [f"{50 * n},{loss},,\n{50 * n},,{2.0 + n / 100},0.5\n" for n, loss in enumerate(losses)]
    path.write_text("step,train_loss,val_loss,reward\n" + "".join(rows))
    assert vegrad.read_run(path).spikes == ()  # a training by reward
    path.write_text("step,train_loss,val_loss,acc\n" + "".join(rows))
    found = vegrad.diagnose_run(path)
    assert found.healthy
    (one,) = found.spikes()[1:]
    assert one.startswith("  ~ spike at step 1500: loss 2")
    assert "times the median of the steps before" in str(found).replace("\n    ", " ")
    (spike,) = json.loads(json.dumps(found.to_dict()))["spikes"]
    assert spike["step"] == 1500
    assert [row[0] for row in spike["window"]][9:12] == [1450, 1500, 1550]
    assert "<h2>Spikes</h2>" in found.to_html()
