"""Single steps of recurrent layers: the kernels against their formulas."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vegrad import _core

from .cell_steps import SQUARES, Array, Step

cells = pytest.mark.parametrize("cell", _core.CELLS)
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
SHAPES = {"rows": st.integers(1, 40), "hidden": st.integers(1, 70), "seed": st.integers(0, 99)}


def assert_close(step: Step, want: dict[str, Array], *names: str) -> None:
    tolerance = 2e-5 if step.dtype == np.float32 else 1e-13
    for name in names:
        np.testing.assert_allclose(
            step.of(name), want[name], rtol=tolerance, atol=tolerance, err_msg=name
        )


def assert_squares(step: Step, name: str, values: Array) -> None:
    tolerance = 2e-5 if step.dtype == np.float32 else 1e-13
    got = step.arrays[name + "_squares"]
    np.testing.assert_allclose(got, (values**2).sum(1), rtol=tolerance, atol=tolerance)


def check(step: Step, fresh: bool, last: bool, scaled: bool) -> None:
    want = step.forward()
    assert_close(step, want, *want)
    assert_squares(step, "h", want["h"])
    step.go_back(fresh=fresh, last=last, scaled=scaled)
    want = step.backward()
    assert_close(step, want, *(name for name in want if name in ("delta", "gates", "carried")))
    for name in SQUARES:
        if name in want and not (last and name in ("carried", "state")):
            assert_squares(step, name, want[name])


@cells
@dtypes
@given(**SHAPES, fresh=st.booleans(), last=st.booleans(), scaled=st.booleans())
@settings(max_examples=25)
def test_a_step(
    cell: str,
    dtype: str,
    rows: int,
    hidden: int,
    seed: int,
    fresh: bool,
    last: bool,
    scaled: bool,
) -> None:
    before = _core.isa()
    try:
        for isa in _core.isas():
            _core.use_isa(isa)
            check(Step(cell, rows, hidden, dtype, seed), fresh, last, scaled)
    finally:
        _core.use_isa(before)


@cells
@pytest.mark.parametrize("rows", [1, 36, 37, 64, 65, 150])
@pytest.mark.parametrize("hidden", [191, 192, 193, 400])
def test_more_rows_and_units_than_stay_near(isa: str, cell: str, rows: int, hidden: int) -> None:
    check(Step(cell, rows, hidden, "float64"), fresh=False, last=False, scaled=True)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@dtypes
@pytest.mark.parametrize("rows", [1, 4, 6, 70])
def test_what_is_carried_is_summed_for_every_four_rows(
    isa: str, cell: str, dtype: str, rows: int
) -> None:
    step = Step(cell, rows, 21, dtype)
    step.forward()
    carry = step.of("gates")[1]
    step.go_back()
    step.arrays["carry_sums"] = sums = np.zeros((-(-rows // 4), step.slot), step.dtype)
    sums[:, :21] = 1
    step.backward()
    want = np.array([1 + carry[first : first + 4].sum(0) for first in range(0, rows, 4)])
    assert_close(step, {"carry_sums": want}, "carry_sums")


@cells
@dtypes
@pytest.mark.parametrize("hidden", [*range(1, 35), 48, 63, 64, 65, 100, 128, 200])
def test_the_only_row_of_a_batch(isa: str, cell: str, dtype: str, hidden: int) -> None:
    """Its sums are made in another order."""
    step = Step(cell, 1, hidden, dtype)
    step.arrays["lone"] = np.ones(1)
    check(step, fresh=False, last=False, scaled=True)


@cells
@dtypes
@pytest.mark.parametrize("hidden", [1, 17, 40, 200])
def test_a_row_does_not_depend_on_those_beside_it(
    isa: str, cell: str, dtype: str, hidden: int
) -> None:
    """Same bits, whatever the tile that it falls in."""
    names = ("gates", "h", "c", "carried", "delta")
    sums = ("h_squares", *(name + "_squares" for name in SQUARES))
    whole = Step(cell, 70, hidden, dtype)
    whole.forward()
    whole.go_back()
    start = {name: np.copy(whole.arrays[name]) for name in whole.arrays}
    whole.backward()
    for rows in (1, 2, 3, 4, 7, 12, 13, 25, 37):
        part = Step(cell, rows, hidden, dtype)
        part.forward()
        part.go_back()
        for first in range(0, 70 - rows, 11):
            for name, array in start.items():
                cut = array if array.shape[0] != 70 else array[first : first + rows]
                part.arrays[name] = np.copy(array if name in ("recurrent", "bias") else cut)
            part.backward()
            for name in (*names, *sums):
                got, want = part.arrays[name], whole.arrays[name]
                assert got is not None
                assert want is not None
                assert got.tobytes() == want[first : first + rows].tobytes(), (name, rows, first)


@cells
@dtypes
@pytest.mark.parametrize("hidden", [1, 17, 40, 200])
def test_a_row_forward_does_not_depend_on_those_beside_it(
    isa: str, cell: str, dtype: str, hidden: int
) -> None:
    names = ("gates", "h", "c", "h_squares")
    rowwise = (*names, "h_before", "c_before")
    whole = Step(cell, 70, hidden, dtype)
    start = {name: np.copy(whole.arrays[name]) for name in whole.arrays}
    whole.forward()
    for rows in (1, 2, 3, 4, 7, 12, 13, 25, 37):
        part = Step(cell, rows, hidden, dtype)
        for first in range(0, 70 - rows, 11):
            for name, array in start.items():
                part.arrays[name] = np.copy(
                    array[first : first + rows] if name in rowwise else array
                )
            part.forward()
            for name in names:
                got, want = part.arrays[name], whole.arrays[name]
                assert got is not None
                assert want is not None
                assert got.tobytes() == want[first : first + rows].tobytes(), (name, rows, first)


SPECIAL = [0.0, -0.0, 1e-30, 8.9, -8.9, 20, -20, 87.5, -87.5, 100, -100, 1e30, -1e30]


@cells
@dtypes
@pytest.mark.parametrize("value", [*SPECIAL, np.inf, -np.inf])
def test_saturated_units(isa: str, cell: str, dtype: str, value: float) -> None:
    """No gate leaves 0 … 1, no tanh -1 … 1, and all is finite."""
    step = Step(cell, 5, 20, dtype)
    gates = step.arrays["gates"]
    assert gates is not None
    gates.reshape(5, -1, step.slot)[:, :, : step.hidden] = value
    if cell == "relu":
        return
    want = step.forward()
    assert_close(step, want, *want)
    got = step.of("h" if cell == "tanh" else "gates")
    bounded = got[:3] if cell == "gru" else got  # m is no gate
    assert (np.abs(bounded) <= 1).all()
    if cell == "lstm" and value < -720:
        shut = np.finfo(dtype).tiny if _core.is_plain() else 0  # it flushes nothing
        assert (step.of("gates")[[0, 1, 3]] <= shut).all(), "a shut gate lets nothing through"


@cells
@dtypes
def test_nan_stays_in_its_row(isa: str, cell: str, dtype: str) -> None:
    step, well = Step(cell, 9, 21, dtype), Step(cell, 9, 21, dtype)
    gates = step.arrays["gates"]
    assert gates is not None
    gates[4, 3] = np.nan
    for each in (step, well):
        each.forward()
    h, other = step.of("h"), well.of("h")
    assert np.isnan(h[4, 3])
    rest = np.ones_like(h, bool)
    rest[4, 3] = False
    assert (h[rest] == other[rest]).all()


GUARDED = """
import functools, sys
from vegrad import _core
from tests.core.cell_steps import Step
from tests.core.guarded import forget, guarded
place = functools.partial(guarded, after=sys.argv[1] == "after")
for cell in _core.CELLS:
    for dtype in ("float32", "float64"):
        for hidden in (1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 64, 70):
            for rows in (1, 2, 3, 4, 7, 13, 40):
                step = Step(cell, rows, hidden, dtype, place=place)
                step.forward()
                step.go_back()
                step.backward()
                del step
                forget()
print("nothing else was touched")
"""


@pytest.mark.skipif(not sys.platform.startswith(("linux", "darwin")), reason="mprotect")
@pytest.mark.parametrize("where", ["after", "before"])
@pytest.mark.parametrize("isa", _core.isas())
def test_nothing_beyond_the_arrays_is_touched(isa: str, where: str) -> None:
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", GUARDED, where],
        env=os.environ | {"VEGRAD_ISA": isa, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "nothing else was touched\n"), done.stderr[-2000:]
