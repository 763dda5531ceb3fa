"""The cure of own networks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vegrad.arrays.checks import Array
from vegrad.networks.editor import clone
from vegrad.networks.mlp import MLP
from vegrad.networks.network import check_network
from vegrad.networks.reading import expected_or_none
from vegrad.networks.recurrent_subject import RecurrentSubject, SequenceData, as_memory
from vegrad.networks.rnn import RNN
from vegrad.networks.subject import NetworkSubject, Scaling
from vegrad.optim import Adam, Optimizer
from vegrad.sweeps import Pool
from vegrad.treatment.budget import BUDGET
from vegrad.treatment.data import ArrayData
from vegrad.treatment.foresight import Executor
from vegrad.treatment.goal import Plan, check_goal, check_lengths, goal_for
from vegrad.treatment.learnability import attainable
from vegrad.treatment.outcome import Outcome
from vegrad.treatment.progress import Listener, listener
from vegrad.treatment.search import Search


@dataclass(frozen=True, kw_only=True, repr=False)
class Cure(Outcome):
    """The outcome for a network.

    `network` is the cured one, before training; a copy of the given one if nothing was better. Its
    `preparation` is the given one's, and the scaling besides, so that it may predict once trained.
    `optimizer` is the one to train it with, and `scaling` the shift and scale that x is to be put
    through, (x - shift)/scale, if it is; `target_scaling` is that of the target.
    """

    network: MLP | RNN
    optimizer: Optimizer
    scaling: Scaling | None = None
    target_scaling: tuple[Array, float] | None = None


def cure(
    network: MLP | RNN,
    x: Any,
    target: Any,
    *,
    goal: float | None = None,
    optimizer: Optimizer | None = None,
    steps: int = 500,
    batch_size: int = 32,
    seed: int = 0,
    budget: float = BUDGET,
    progress: bool | Listener = False,
    lengths: object = None,
    memory: int = 0,
    executor: Executor | Pool | None = None,
) -> Cure:
    """Find the smallest change that makes `network` train, and prove it.

    Remedies are tried in the order of `remedies.REMEDIES`, the smallest change first. Each is
    judged by one pass; if that is promising, by a training from the same seed on the same rows,
    which ends as soon as it reaches the goal or is seen to learn nothing. The first that reaches
    the goal, and reaches it again with the rows in another order if the budget allows, is the cure.
    Then the given network is trained for as many steps: the proof.

    Args:
        network: a `vegrad.MLP` or `vegrad.RNN`, which stays as it is.
        x: the inputs (N, I), or sequences (N, T, I).
        target: as for the network's `backward`, for all rows.
        goal: an accuracy, at least, for the two cross entropies; for mse a loss, at most. By
            default 80 % of the way from the best constant output to perfection, for mse half of
            it. It is looked at on up to 256 of the rows.
        optimizer: of vegrad.optim, with its clip; it stays as it is. By default Adam(1e-3).
        steps: of one training.
        batch_size: rows of a step.
        seed: of the order of the rows, of the rows to look at and of new weights, if the network
            has no seed of its own.
        budget: the most that may be spent, in trainings of `steps`, the given network's included.
            (Trainings of under some hundred rows cost less than a look at them; they may pass it.)
        progress: True for a line on standard error; or a function, which is called with a
            `vegrad.treatment.progress.Look` at every look at a training.
        lengths: of sequences (N,), as for `RNN.backward`.
        memory: how many steps back lies what the task needs, of a `vegrad.RNN`, as for `diagnose`.
        executor: a `concurrent.futures.Executor` or its like, or a pool with `apply_async` (Ray's),
            whose workers train candidates side by side; the outcome is the same. Workers in
            processes of their own take one thread.

    Raises:
        TypeError, ValueError: as `MLP.fit`; a goal or budget out of range.
    """
    check_network(network)
    if optimizer is None:
        optimizer = Adam(1e-3)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be one of vegrad.optim's, not {type(optimizer).__name__}")
    tell = listener(progress)
    steps, batch_size = check_lengths(steps, batch_size, budget)
    check_goal(goal, network.config["loss"])
    numeric = network.config["loss"] == "mse"
    if isinstance(network, RNN):
        rows = network.batch(x, target, lengths)
        sequences = SequenceData(rows.x, rows.target, numeric=numeric, lengths=rows.lengths)
        patient = RecurrentSubject(
            clone(network), sequences, optimizer, seed, memory=as_memory(memory, rows.x)
        )
        wanted = patient.rows().wanted
        aim = goal_for(network.config["loss"], wanted, None if goal is None else float(goal))
        plan = Plan(aim, steps, batch_size, seed, budget, whole=True)
        return _searched(patient, plan, tell, executor)
    if lengths is not None or memory:
        raise ValueError("lengths and memory go with a vegrad.RNN, not with a vegrad.MLP")
    data = ArrayData(*network.checked(x, target), numeric=numeric)
    given = NetworkSubject(clone(network), data, optimizer, seed)
    aim = goal_for(network.config["loss"], data.target, None if goal is None else float(goal))
    if goal is None:
        aim = attainable(data.x, data.target, aim)
    return _searched(given, Plan(aim, steps, batch_size, seed, budget), tell, executor)


def _searched(
    given: NetworkSubject, plan: Plan, tell: Listener, executor: Executor | Pool | None
) -> Cure:
    data, optimizer = given.data, given.optimizer
    assert optimizer is not None
    if not (np.isfinite(data.x).all() and np.isfinite(data.target).all()):
        every = np.arange(len(data))
        before = given.diagnosed(*data.take(every), theory=True)  # says where, and runs nothing
        why = "no change of the network makes up for values that are not finite"
        return Cure.without_a_trial(before, plan, why, network=given.network, optimizer=optimizer)
    search = Search(given, plan, tell=tell, executor=executor)
    outcome, treatment = search.run()
    treated = treatment.subject
    assert isinstance(treated, NetworkSubject)
    after = outcome.after
    if outcome.patch and isinstance(treated.network, MLP):
        sample, _ = treated.data.take(search.patient.rows)
        after = replace(after, expected_flow=expected_or_none(treated.network, sample))
    prepared, units = treated.network.preparation, treated.data.units
    if prepared is not None:
        treated.network.preparation = prepared.scaled(treated.scaling, units)
    return Cure(
        **vars(outcome) | {"after": after},
        network=treated.network,
        optimizer=treated.optimizer or optimizer,
        scaling=treated.scaling,
        target_scaling=units,
    )
