"""Trainings that a search will probably ask for, begun by workers before it does.

The search makes the same decisions in the same order as without workers. Where it begins a training
that a worker was given, it gets the steps that the worker took, which are those that it would have
taken itself; where it asks for other ones, or the worker was lost, it trains here.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np

from vegrad import _core
from vegrad.arrays.checks import Array, FloatArray
from vegrad.diagnosis.alarms import user_level
from vegrad.diagnosis.history import EPOCHS, LAYERS, STEPS, History
from vegrad.diagnosis.noted import Json
from vegrad.sweeps import OfPool, Pool, check_executor, is_pool
from vegrad.treatment.curable import Trainer
from vegrad.treatment.goal import Goal
from vegrad.treatment.promise import PATIENT, hopeless, thrown
from vegrad.treatment.remedy import Treatment
from vegrad.treatment.trial import Begin, Trial

Key = tuple[tuple[str, ...], str, int]


@dataclass(frozen=True)
class Part:
    """Some steps in a row: the order of their rows, and what the history got of them."""

    order: Array
    columns: FloatArray
    epochs: list[dict[str, Json]]
    ended: str

    @classmethod
    def of(cls, order: Array, history: History, first: int, epochs: int, ended: str) -> Part:
        """Take what a history has got since a step and an epoch."""
        columns = np.array([history.since(first, name) for name in STEPS])
        rows, names = range(epochs, history.epochs), (*EPOCHS, *LAYERS)
        of_epochs = [{name: getattr(history, name)[row] for name in names} for row in rows]
        return cls(order, columns, of_epochs, ended)

    def onto(self, history: History) -> str:
        """Add it to another history; return why the training ended, "" if it did not."""
        history.add_steps(self.columns)
        for epoch in self.epochs:
            history.add_epoch(**epoch)
        return self.ended


class Record:
    """A trainer that writes down what it does."""

    def __init__(self, trainer: Trainer, history: History) -> None:
        self._trainer, self._history = trainer, history
        self.parts: list[Part] = []
        self.looks: dict[int, tuple[float, float]] = {}

    def advance(self, order: Array) -> str:
        """Take the steps, and keep what the history gets of them."""
        first, epochs = self._history.steps, self._history.epochs
        ended = self._trainer.advance(order)
        self.parts.append(Part.of(order, self._history, first, epochs, ended))
        return ended

    def evaluate(self, rows: Array) -> tuple[float, float]:
        """Look, and keep what was seen after so many parts."""
        self.looks[len(self.parts)] = seen = self._trainer.evaluate(rows)
        return seen


Trained = tuple[list[Part], dict[int, tuple[float, float]]]


class Replay:
    """A trainer that takes the steps of a worker's as long as these are what is asked for.

    Args:
        begin: begins the training here, should that be necessary.
        history: gets the steps.
        trained: waits for the worker, and returns what it did; None if it was lost.
    """

    def __init__(
        self, begin: Begin, history: History, trained: Callable[[], Trained | None]
    ) -> None:
        self._begin, self._history, self._wait = begin, history, trained
        self._trained: Trained | None = None
        self._orders: list[Array] = []
        self._own = History()
        self._begun: Trainer | None = None
        self._trainer: Trainer | None = None

    def advance(self, order: Array) -> str:
        """Take the steps, from the worker's record if they are there."""
        if not self._orders:
            self._trained = self._wait()
        place = len(self._orders)
        self._orders.append(order)
        if self._trainer is None and self._trained is not None and place < len(self._trained[0]):
            part = self._trained[0][place]
            if np.array_equal(part.order, order):
                return part.onto(self._history)
        self._orders.pop()
        trainer = self._here()
        self._orders.append(order)
        first, epochs = self._own.steps, self._own.epochs
        ended = trainer.advance(order)
        return Part.of(order, self._own, first, epochs, ended).onto(self._history)

    def evaluate(self, rows: Array) -> tuple[float, float]:
        """Look; after steps that a worker took, as it did."""
        if not self._orders:  # nobody has to be waited for
            return self._start().evaluate(rows)
        if self._trainer is None and self._trained is not None:
            seen = self._trained[1].get(len(self._orders))
            if seen is not None:
                return seen
        return self._here().evaluate(rows)

    def _here(self) -> Trainer:
        """Return the training here, which has come as far."""
        if self._trainer is None:
            self._trainer = self._start()
            for order in self._orders:
                self._trainer.advance(order)
        return self._trainer

    def _start(self) -> Trainer:
        """Return the training here, before it has taken a step."""
        if self._begun is None:
            self._begun = self._begin(self._own)
        return self._begun


@dataclass(frozen=True)
class Setting:
    """Properties that all trainings of a search have in common; see `Trial`."""

    rows: Array
    goal: Goal
    batch_size: int
    steps: int
    seed: int


class Promise(Protocol):
    """A future of what a worker has trained."""

    def result(self) -> Trained:
        """Return it, once it is there."""

    def cancel(self) -> bool:
        """Take it back, if it has not begun; return True if that was so."""


class Executor(Protocol):
    """An executor of trainings, as `vegrad.sweeps.Executor` is one of measurements."""

    def submit(self, function: Callable[..., Trained], /, *arguments: object) -> Promise:
        """Have the function called by a worker."""


class Foresight:
    """The trainings that were given to workers.

    Args:
        executor: has the workers, or is a pool of them; None for none.
        setting: what all trainings have in common.

    Raises:
        TypeError: the executor has no `submit`.
    """

    def __init__(self, executor: Executor | Pool | None, setting: Setting) -> None:
        found = cast(Executor | None, OfPool(executor) if is_pool(executor) else executor)
        if found is not None:
            check_executor(found)
        self._executor: Executor | None = found
        self._setting = setting
        self._begun = dict[Key, Promise]()

    @property
    def wanted(self) -> bool:
        """True if there are workers."""
        return self._executor is not None

    def begin(self, treatment: Treatment, *, whole: bool = False) -> None:
        """Have a training done: a whole one, or until it is seen to be hopeless."""
        key = _key(treatment, self._setting.seed)
        if self._executor is None or key in self._begun:
            return
        work = treatment, self._setting, whole, os.getpid()
        try:
            self._begun[key] = self._executor.submit(_trained, *work)
        except Exception as error:
            self._lose(error)

    def trainer(self, trial: Trial, begin: Begin) -> Trainer:
        """Return what takes the steps of a training: a worker's, if one was given it."""
        promise = self._begun.pop(_key(trial.treatment, trial.seed), None)
        if promise is None:
            return begin(trial.history)

        def wait() -> Trained | None:
            if promise.cancel():  # no worker has come to it: it is as quick here
                return None
            try:
                return promise.result()
            except Exception as error:
                self._lose(error)
                return None

        return Replay(begin, trial.history, wait)

    def _lose(self, error: Exception) -> None:
        """Warn, once, and do without workers from now on."""
        if self._executor is not None:
            why = f"{type(error).__name__}: {error}".split("\n")[0]
            message = f"the executor has failed, and the search goes on without it ({why})"
            warnings.warn(message, RuntimeWarning, stacklevel=user_level())
        self._executor = None

    def close(self) -> None:
        """Take back what nobody has asked for."""
        for promise in self._begun.values():
            promise.cancel()
        self._begun.clear()


def _key(treatment: Treatment, seed: int) -> Key:
    return treatment.lines, treatment.words, seed


def _trained(treatment: Treatment, setting: Setting, whole: bool, owner: int) -> Trained:
    """Train in a worker; one in a process of its own takes one thread."""
    if os.getpid() != owner:
        _core.set_num_threads(1)
    records = list[Record]()

    def recording(trial: Trial, begin: Begin) -> Trainer:
        records.append(Record(begin(trial.history), trial.history))
        return records[0]

    s = setting
    trial = Trial(treatment, s.rows, s.goal, s.batch_size, s.steps, s.seed, trainers=recording)
    trial.train(s.steps, None if whole else _given_up)
    return records[0].parts, records[0].looks


def _given_up(trial: Trial) -> bool:
    return thrown(trial) or hopeless(trial, patient=PATIENT)
