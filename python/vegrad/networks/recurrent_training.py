"""The training of recurrent networks, whole sequences at a time or window by window."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike

from vegrad.diagnosis.alarms import OnFinding
from vegrad.diagnosis.history import History
from vegrad.networks.distributed import Comm
from vegrad.networks.recurrent_network import RecurrentNetwork
from vegrad.networks.sequences import Truncation
from vegrad.networks.training import Callback, Options, check_validation, train
from vegrad.optim import Optimizer


def fit(
    network: RecurrentNetwork,
    x: object,
    target: object,
    *,
    optimizer: Optimizer,
    epochs: int,
    batch_size: int,
    lengths: object = None,
    truncation: Truncation = None,
    validation: tuple[object, ...] | None = None,
    shuffle: bool = True,
    seed: int | None = None,
    callbacks: Iterable[Callback] = (),
    progress: bool = True,
    gauge_every: int | None = 100,
    checkpoint: str | PathLike[str] | None = None,
    resume: str | PathLike[str] | None = None,
    on_finding: OnFinding = "warn",
    log: str | PathLike[str] | None = None,
    comm: Comm | None = None,
) -> History:
    """Train the network; Ctrl-C is answered within a step and leaves it as a step left it.

    Sequences longer than memory stream through: x and target may be memory maps, of which only the
    steps in hand are read, or come in windows.

    Args:
        network: the one whose method this is.
        x: (N, T, I); or, if there is a target at each step, a sequence of windows (N, K, I) that
            follow each other, such as a list, read one after the other.
        target: as for `backward`, for all rows; cut into windows as x is.
        optimizer: one of vegrad.optim, with its clip.
        epochs: passes over the data, counted from the first start, also after a resume.
        batch_size: rows of a step; the last of an epoch may have fewer.
        lengths: (N,), as for `backward`.
        truncation: as for `backward`. If there is a target at each step, a step is taken after each
            window of k1 (or K) steps, and the next window goes on from the state in which it ended;
            so it is with x in windows. The state is 0 where a row begins.
        validation: (x, target) or (x, target, lengths), evaluated after each epoch.
        shuffle: draw a new order of the rows for each epoch.
        seed: of the order. None draws a fresh one.
        callbacks: called with (network, history) after each epoch; True ends the training.
        progress: show a line on standard error.
        gauge_every: the gauge takes `History.alpha` at every so many steps, each of which then
            costs about two, and of six in a row where one is suspicious; None for never.
        checkpoint: a file that is written after each epoch, whole or not at all.
        resume: a checkpoint to go on from, bit for bit as if never stopped.
        on_finding: as for `MLP.fit`.
        log: as for `MLP.fit`.
        comm: as for `MLP.fit`; each process takes its part of every batch through all its windows,
            with states of its own.

    Raises:
        TypeError, ValueError: before the first step, but for values of a memory map or a window
            that is only then read; NonFiniteGradientError as the clip's rule says, with the weights
            as the last step left them. What ends a training, Ctrl-C too, has the history so far as
            its attribute `history`.
    """
    options = Options(
        optimizer,
        epochs,
        batch_size,
        shuffle,
        seed,
        callbacks,
        progress,
        gauge_every,
        checkpoint,
        resume,
        on_finding,
        log,
        comm,
    )
    check_validation(validation, 2, 3)
    rows = network.rows(x, target, lengths, truncation)
    held = None if validation is None else network.batch(*validation)
    return train(network, rows, held, options)
