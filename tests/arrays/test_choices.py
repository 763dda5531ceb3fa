"""The names that type checkers know are those of the tables, and numbers are of any kind."""

from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import vegrad
from vegrad import _core
from vegrad.arrays import checks as choices
from vegrad.arrays.checks import POLICIES
from vegrad.networks.rnn import TARGETS
from vegrad.theory.cells import GATES
from vegrad.theory.initializers import INITIALIZERS
from vegrad.theory.recurrent_initializers import RECURRENT_INITIALIZERS

TABLES: list[tuple[Any, Any]] = [
    (choices.Policy, POLICIES),
    (choices.Activation, _core.ACTIVATIONS),
    (choices.Loss, _core.LOSSES),
    (choices.Normalization, _core.NORMS),
    (choices.Initialization, INITIALIZERS),
    (choices.Cell, GATES),
    (choices.Targets, TARGETS),
    (choices.RecurrentInitialization, RECURRENT_INITIALIZERS),
]


@pytest.mark.parametrize(("literal", "table"), TABLES)
def test_the_names_are_those_of_the_tables(literal: Any, table: Any) -> None:
    assert sorted(get_args(literal)) == sorted(table)


CALLS = [
    (vegrad.clip_by_value_, {"limit": choices.Number, "nonfinite": choices.Policy}),
    (vegrad.clip_by_global_norm_, {"ord": choices.Number, "nonfinite": choices.Policy}),
    (vegrad.clipping.ZClip, {"mode": choices.SpikeMode, "alpha": choices.Number}),
    (vegrad.AdamW, {"eps": choices.Number}),
    (vegrad.MLP, {"loss": choices.Loss, "init": choices.Initialization}),
    (vegrad.RNN, {"cell": choices.Cell, "init": choices.RecurrentInitialization}),
]


@pytest.mark.parametrize(("call", "wanted"), CALLS)
def test_type_checkers_are_told(call: Any, wanted: dict[str, Any]) -> None:
    hints = get_type_hints(call.__init__ if isinstance(call, type) else call)
    assert {name: hints[name] for name in wanted} == wanted


def test_numbers_of_numpy_are_numbers() -> None:
    grads = [np.ones(4)]
    assert vegrad.clip_by_global_norm_(grads, np.float32(1.0)).norm_after == 1.0
    rule = vegrad.clipping.GlobalNorm(np.float32(0.5))
    assert isinstance(rule.max_norm, float)
    vegrad.AdamW(np.float32(0.1), eps=np.float64(1e-8), clip=rule).step([np.ones(4)], grads)
