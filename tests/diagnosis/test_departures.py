"""Judge parameters that are far from their like: only where a what-if shows what they do."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf, log2, nan

import pytest
from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.diagnosis.rules.suspects import Suspects
from vegrad.flow.data import Compared, Input, Spread
from vegrad.flow.edits import Edit, Initialize, Redraw, Scale, ScaleData, Shift, parts
from vegrad.flow.reading import INPUT, Effect, Operation, Parameter, Reading
from vegrad.flow.wording import Vocabulary

WIDTH = 64


def sized(name: str, rms: float, role: str = "map", **more: object) -> Parameter:
    size = log2(rms) if rms else -inf
    shape = (WIDTH,) if role in ("norm", "bias", "variance") else (WIDTH, WIDTH)
    fans = (WIDTH, WIDTH) if role == "map" else (0, 0)
    return Parameter(name, shape, size, role=role, fans=fans, gradient_log2=0.0, **more)  # type: ignore[arg-type]


@dataclass
class Guilty:
    """A what-if in which an edit that has a part on a guilty parameter moves all gradients."""

    guilty: str
    decades: float = 3.0
    loss: float = 1.0
    passes: int = 0
    asked: list[Edit] = field(default_factory=list)
    again: Reading | None = None

    def effect(self, edit: Edit | None) -> Effect:
        self.passes += 1
        touched = False
        if edit is not None:
            self.asked.append(edit)
            named = {n for one in parts(edit) for n in getattr(one, "parameters", ())}
            touched = self.guilty in named or isinstance(edit, Initialize | ScaleData)
        moved = self.decades * log2(10) if touched else 0.0
        return Effect(1.0 if touched else self.loss, {"a.weight": moved, "b.weight": moved})

    def reading(self, edit: Edit) -> Reading | None:
        return self.again


def reading(*others: Parameter, what_if: Guilty | None = None, **more: object) -> Reading:
    usual = [sized(f"{name}.weight", WIDTH**-0.5) for name in "abcd"]
    known = {one.name: one for one in (*usual, *others)}
    maps = [one for one in known.values() if one.role == "map"]
    operations = [
        Operation("linear", one.module, (place - 1,), (one.name,), 0.0, 0.0)
        for place, one in enumerate(maps)
    ]
    more = {"operations": (*operations, Operation("loss", "loss", (len(maps) - 1,))), **more}
    return Reading(
        vocabulary=Vocabulary(), about={}, loss=1.0, parameters=known, what_if=what_if, **more  # type: ignore[arg-type]
    )  # fmt: skip


def found(one: Reading) -> Diagnosis:
    return Diagnosis.of(one)


def test_a_network_as_drawn_has_no_suspects_and_needs_no_pass() -> None:
    asked = Guilty("")
    assert found(reading(what_if=asked)).healthy
    assert asked.passes == 0


@pytest.mark.parametrize("factor", [1e-3, 1e3])
@pytest.mark.parametrize(("decades", "kind"), [(3.0, "vanishing"), (-3.0, "exploding")])
def test_a_single_weight_is_guilty_if_gradients_depend_on_it(
    factor: float, decades: float, kind: str
) -> None:
    """What is said of the gradient follows it, not the weight: large ones saturate, too."""
    off = sized("b.weight", factor * WIDTH**-0.5)
    diagnosis = found(reading(off, what_if=Guilty("b.weight", decades)))
    (finding,) = diagnosis.findings
    assert (finding.kind, finding.cause, finding.sites[0].name) == (
        kind,
        "weight-scale",
        "b.weight",
    )
    assert isinstance(finding.edit, Scale)
    assert finding.edit.factor == pytest.approx(1 / factor, rel=0.5)
    assert abs(finding.evidence["decades"]) == pytest.approx(3.0)


def test_a_size_that_changes_nothing_is_no_finding() -> None:
    off = sized("b.weight", 1e-3 * WIDTH**-0.5)
    asked = Guilty("b.weight", decades=1.0)
    assert found(reading(off, what_if=asked)).healthy
    assert asked.asked


@pytest.mark.parametrize("rms", [0.02, (3 * WIDTH) ** -0.5, (2 / WIDTH) ** 0.5])
def test_usual_initializations_are_no_suspects(rms: float) -> None:
    assert not Suspects(reading(sized("b.weight", rms))).single()


def test_zeros_do_harm_only_to_what_they_take_a_gradient_from() -> None:
    zero = sized("b.weight", 0.0)
    assert found(reading(zero, what_if=Guilty("b.weight", decades=-3))).healthy
    (finding,) = found(reading(zero, what_if=Guilty("b.weight", decades=3))).findings
    assert (finding.kind, finding.cause) == ("vanishing", "weight-scale")


def test_a_small_head_and_a_closed_branch_are_no_suspects() -> None:
    assert not Suspects(reading(sized("d.weight", 1e-4 * WIDTH**-0.5))).single()
    assert not Suspects(reading(sized("d.weight", 0.0))).single()
    zero = reading(sized("b.weight", 0.0))
    (suspect,) = Suspects(zero).single()  # what comes after it gets nothing but biases
    assert suspect.edit == Redraw(("b.weight",))
    maps = zero.operations
    closed = (*maps[:2], Operation("mul", "", (1,)), Operation("add", "", (0, 2)))
    assert not Suspects(replace(zero, operations=closed)).single()


def test_all_weights_are_said_of_the_whole() -> None:
    large = [sized(f"{name}.weight", 1.0) for name in "abcd"]
    (finding,) = found(reading(*large, what_if=Guilty("a.weight"))).findings
    assert finding.cause == "weight-scale-all"
    assert isinstance(finding.edit, Redraw)
    own = found(reading(*large, what_if=Guilty("a.weight"), draws_itself=True)).findings[0]
    assert own.edit == Initialize("default")


def test_small_weights_that_are_somebodys_choice_are_no_finding() -> None:
    """They do no harm where a way to the output passes gradients by them."""
    small = [sized(f"{name}.weight", 1e-4) for name in "abcd"]
    assert found(reading(*small, what_if=Guilty("a.weight", decades=-3))).healthy
    assert not found(reading(*small, what_if=Guilty("a.weight", decades=3))).healthy


def test_a_normalization_that_is_off_alone_is_named() -> None:
    norms = [sized(f"norm{n}.weight", 1.0, "norm") for n in range(4)]
    for size, kind in ((1e-4, Scale), (0.0, Shift)):
        norms[2] = sized("norm2.weight", size, "norm")
        (finding,) = found(reading(*norms, what_if=Guilty("norm2.weight"))).findings
        assert finding.cause == "normalization-weight"
        assert type(finding.edit) is kind
    closed = [sized(f"norm{n}.weight", 0.0, "norm") for n in range(4)]
    assert not Suspects(reading(*closed)).single()  # all begin closed


def test_running_statistics_are_compared_with_the_batch() -> None:
    far = sized("bn.running_var", 1e8, "variance", batch_log2=0.0)
    (finding,) = found(reading(far, what_if=Guilty("bn.running_var"))).findings
    assert (finding.kind, finding.cause) == ("vanishing", "running-statistics")
    fresh = sized("bn.running_var", 1.0, "variance", batch_log2=log2(1e-6))
    assert not Suspects(reading(fresh)).single()  # it has seen no batch


def test_a_bias_that_moves_units_away_is_named_unless_its_like_do_too() -> None:
    off = sized("c.bias", 10.0, "bias", mean=-10.0)
    (finding,) = found(reading(off, what_if=Guilty("c.bias"))).findings
    assert (finding.kind, finding.edit) == ("saturated", Shift(("c.bias",), 10.0))
    alike = [sized(f"h.{n}.bias", 4.6, "bias", mean=-4.6) for n in range(3)]
    assert not Suspects(reading(*alike)).single()


def test_tables_are_compared_with_tables() -> None:
    tables = [sized("words.weight", 0.02, "table"), sized("places.weight", 0.02, "table")]
    assert not Suspects(reading(*tables)).single()
    assert not Suspects(reading(sized("words.weight", 1.0, "table"), tables[1])).single()
    tables[0] = sized("words.weight", 100.0, "table")
    (finding,) = found(reading(*tables, what_if=Guilty("words.weight"))).findings
    assert finding.cause == "embedding-scale"


def test_large_inputs_are_said_of_the_data_unless_weights_make_up_for_them() -> None:
    first = Operation("linear", "a", (INPUT,), ("a.weight",), log2(127.0), 0.0)
    more = {"inputs": (Input("x", 127.0, 120.0),), "operations": (first, Operation("loss"))}
    (finding,) = found(reading(what_if=Guilty(""), **more)).findings
    assert (finding.cause, finding.edit) == ("input-scale", ScaleData())
    small = replace(first, rms_log2=0.0)
    assert found(
        reading(what_if=Guilty(""), **more | {"operations": (small, Operation("loss"))})
    ).healthy


def test_a_loss_that_becomes_finite_is_nonfinite() -> None:
    off = sized("b.weight", 1e6)
    one = reading(off, what_if=Guilty("b.weight", loss=nan))
    (finding,) = found(replace(one, loss=nan)).findings
    assert finding.kind == "nonfinite"
    assert "the loss is finite" in finding.message


@pytest.mark.parametrize(
    ("value", "std", "healthy"), [(4.2, 0.2, True), (12.0, 5.0, True), (109.0, 17.0, False)]
)
def test_a_loss_far_above_that_of_guessing_is_no_chance(
    value: float, std: float, healthy: bool
) -> None:
    outputs, labels = Spread((128, 64), -40, 130, 0, std), Spread((128,), 0, 63, 30, 18)
    one = Compared("cross_entropy", outputs, labels, 3, value=value, units=64, labels=True)
    assert found(reading(sized("d.weight", 1.0), compared=(one,))).healthy is healthy
    assert found(reading(compared=(one,))).healthy


def deltas(first: float, last: float, maps: int = 9) -> Mapping[str, object]:
    operations = [
        Operation("linear", f"{n}", (n - 1,), (f"{n}.weight",), 0.0, first if n < 3 else last)
        for n in range(maps)
    ]
    return {"operations": (*operations, Operation("loss", "loss", (maps - 1,)))}


def test_what_reaches_the_first_maps_by_all_ways_counts() -> None:
    (finding,) = found(reading(**deltas(-20.0, 0.0))).findings
    assert (finding.kind, finding.rule) == ("vanishing", "graph-reach")
    assert found(reading(**deltas(-20.0, 0.0, maps=5))).healthy  # too few to compare
    operations = deltas(-20.0, 0.0)["operations"]
    assert isinstance(operations, tuple)
    shorter = replace(operations[6], below=(5, INPUT))  # the inputs come in once more
    assert found(reading(operations=(*operations[:6], shorter, *operations[7:]))).healthy
