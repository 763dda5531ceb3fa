"""Calls timed in turns: A, B, C, A, B, C, …, so that a slow minute is everyone's."""

import time
from itertools import chain
from statistics import median


def settle(limit=0.3):
    """Waits until the threads of the last library, which may spin for a while, sleep."""
    end = time.perf_counter() + limit
    while time.perf_counter() < end:
        before = time.process_time()
        time.sleep(0.002)
        if time.process_time() - before < 0.0003:
            return


def one_turn(step, seconds):
    """The duration of each call in one turn, after untimed calls; a slow call is not repeated."""
    durations, warming = [], 0.0
    while warming < seconds / 5:
        start = time.perf_counter()
        step()
        warming += time.perf_counter() - start
    if warming > 1:
        return [warming]
    while sum(durations) < seconds:
        start = time.perf_counter()
        step()
        durations.append(time.perf_counter() - start)
    return durations


def interleave(tasks, seconds, turn=0.05):
    """{name: [[duration of each call] for each turn]}: A, B, C, A, B, C, … of about `seconds` each.

    A task whose call takes over a second has three turns of one call.
    """
    turns = {name: [] for name in tasks}
    end = time.perf_counter() + seconds * len(tasks)
    going = list(tasks)
    while going and (time.perf_counter() < end or len(turns[going[0]]) < 3):
        for name in going:
            settle()
            turns[name].append(one_turn(tasks[name], turn))
        going = [name for name in going if len(turns[name]) < 3 or turns[name][-1][0] < 1]
    return turns


def fastest(tasks, seconds):
    """(name, median seconds) of the fastest task."""
    turns = interleave(tasks, seconds, 0.02)
    medians = {name: median(chain(*durations)) for name, durations in turns.items()}
    return min(medians.items(), key=lambda item: item[1])
