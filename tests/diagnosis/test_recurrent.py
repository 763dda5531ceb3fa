"""The rules on recurrent cells: their words say what is so."""

import numpy as np
import vegrad


def diagnosis(factor: float) -> vegrad.Diagnosis:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((200, 40, 2))
    net = vegrad.RNN(2, 16, 2, cell="tanh", loss="cross_entropy", seed=0)
    net.parameters["rnn.weight_hh_l0"][...] *= factor
    return vegrad.diagnose(net, x, (x[:, -3, 0] > 0).astype(int))


def test_a_gradient_that_shrinks_at_first_is_not_said_to_grow_by_less_than_1() -> None:
    (uneven,), (even,) = diagnosis(20).findings, diagnosis(6).findings
    assert (uneven.kind, even.kind) == ("exploding", "exploding")
    assert uneven.evidence["gain"] < 1 < even.evidence["gain"]
    assert (
        "grows to 2.2e+3× within 40 steps in rnn (layer 0), but unevenly: 0.60× a step back "
        in (uneven.message)
    )
    assert "the gradient grows 1.17× a step back in" in even.message
