"""Points handed out: the same numbers whoever measures them, and nothing lost when one fails."""

import json
import os
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import pytest
import vegrad
from vegrad.sweeps import SweepError, spread
from vegrad.sweeps.spread import IN_FLIGHT

ABOUT: dict[str, object] = {"of": "squares"}


@dataclass(frozen=True)
class Place:
    x: float


def square(place: Place) -> dict[str, float]:
    if place.x == 3:
        raise ValueError("3 is not to be had")
    return {"square": place.x**2}


def with_threads(place: Place) -> dict[str, float]:
    return {"threads": vegrad.num_threads(), "process": os.getpid()}


def dying(place: Place) -> dict[str, float]:
    if place.x == 2:
        os._exit(1)
    return square(place)


def processes(count: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"))


PLACES = [Place(float(x)) for x in range(6)]


def numbers(outcomes) -> dict[float, object]:
    return {one.point.x: one.numbers and one.numbers["square"] for one in outcomes}


def test_a_failed_point_ends_nothing() -> None:
    outcomes = list(spread(square, PLACES, about=ABOUT))
    assert numbers(outcomes) == {0: 0, 1: 1, 2: 4, 3: None, 4: 16, 5: 25}
    assert [one.problem for one in outcomes if one.numbers is None] == [
        "ValueError: 3 is not to be had"
    ]


def test_processes_and_threads_measure_the_same() -> None:
    here = numbers(spread(square, PLACES, about=ABOUT))
    with (
        processes(2) as others,
        ThreadPoolExecutor(3) as threads,
    ):
        for executor in (others, threads):
            assert numbers(spread(square, PLACES, about=ABOUT, executor=executor)) == here


def test_workers_take_one_thread_each_and_leave_ours_alone() -> None:
    before = vegrad.num_threads()
    with (
        processes(1) as others,
        ThreadPoolExecutor(1) as threads,
    ):
        (there,) = spread(with_threads, PLACES[:1], about=ABOUT, executor=others)
        (here,) = spread(with_threads, PLACES[:1], about=ABOUT, executor=threads)
    assert there.numbers == {"threads": 1, "process": there.numbers["process"]}
    assert there.numbers["process"] != os.getpid()
    assert here.numbers == {"threads": before, "process": os.getpid()}
    assert vegrad.num_threads() == before


def test_it_goes_on_from_its_file(tmp_path: Path) -> None:
    file, seen = tmp_path / "map.jsonl", []

    def noted(place: Place) -> dict[str, float]:
        seen.append(place.x)
        return square(place)

    come = spread(noted, PLACES, about=ABOUT, file=file)
    assert [next(come).point.x, next(come).point.x] == [0, 1]
    come.close()  # stopped, while a line was being written
    with file.open("a") as half:
        half.write('{"point": {"x": 4.0}, "numb')
    seen.clear()
    whole = numbers(spread(noted, PLACES, about=ABOUT, file=file))
    assert seen == [2, 3, 4, 5]
    assert whole == numbers(spread(square, PLACES, about=ABOUT))
    seen.clear()
    assert numbers(spread(noted, PLACES, about=ABOUT, file=file)) == whole
    assert seen == [3]  # what failed is tried again


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"vegrad-sweep": 1, "of": "cubes"}\n', "is of another sweep: its of is 'cubes'"),
        ('{"vegrad-sweep": 9, "of": "squares"}\n', "its vegrad-sweep is 9, not 1"),
        ("x,y\n1,2\n", "is not the file of a sweep"),
        ("[1]\n", "is not the file of a sweep"),
    ],
)
def test_another_file_is_refused_and_left(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "other"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        list(spread(square, PLACES, about=ABOUT, file=file))
    assert file.read_text() == content


@pytest.mark.parametrize("line", ["7", '{"point": 3}', '{"point": {"x": 1}, "numbers": 4}', "\x00"])
def test_lines_that_are_none_are_passed_over(tmp_path: Path, line: str) -> None:
    file = tmp_path / "map.jsonl"
    file.write_text(json.dumps({"vegrad-sweep": 1, **ABOUT}) + f"\n{line}\n")
    assert numbers(spread(square, PLACES, about=ABOUT, file=file))[5] == 25


def test_an_executor_that_dies(tmp_path: Path) -> None:
    file = tmp_path / "map.jsonl"
    with (
        processes(1) as executor,
        pytest.raises(SweepError, match=r"died after \d of 6 points; .*map.jsonl has these"),
    ):
        list(spread(dying, PLACES, about=ABOUT, executor=executor, file=file))
    whole = numbers(spread(square, PLACES, about=ABOUT, file=file))
    assert whole[2] == 4
    closed = ThreadPoolExecutor(1)
    closed.shutdown()
    with pytest.raises(SweepError, match=r"died after 0 of 6 points \(RuntimeError"):
        list(spread(square, PLACES, about=ABOUT, executor=closed))


class Lossy:
    """An executor that loses every other point, as a cluster loses a machine; counts what waits."""

    def __init__(self) -> None:
        self.given: list[Future] = []
        self.most = 0

    def submit(self, function, /, *arguments) -> Future:
        future: Future = Future()
        self.given.append(future)
        self.most = max(self.most, sum(not one.done() for one in self.given))
        if len(self.given) % 2:
            future.set_exception(OSError("the machine went away"))
        else:
            future.set_result(function(*arguments))
        return future


def test_a_point_that_is_lost_is_told() -> None:
    outcomes = list(
        spread(square, [Place(10.0 + i) for i in range(4)], about=ABOUT, executor=Lossy())
    )
    assert [one.problem for one in outcomes] == ["OSError: the machine went away", ""] * 2


class Late(Lossy):
    """Answers only when there is no more room."""

    def submit(self, function, /, *arguments) -> Future:
        future: Future = Future()
        self.given.append(future)
        waiting = [one for one in self.given if not one.done()]
        self.most = max(self.most, len(waiting))
        if len(waiting) == IN_FLIGHT or len(self.given) == 1000:
            for one in waiting:
                one.set_result(({"square": 0.0}, ""))
        return future


def test_few_points_wait_at_the_executor() -> None:
    late = Late()
    many = [Place(float(x)) for x in range(1000)]
    assert len(list(spread(square, many, about=ABOUT, executor=late))) == 1000
    assert late.most == IN_FLIGHT


def test_what_is_no_executor_is_refused() -> None:
    with pytest.raises(TypeError, match=r"executor must have submit\(\).*not be 4"):
        list(spread(square, PLACES, about=ABOUT, executor=4))  # type: ignore[arg-type]


def test_what_waits_is_taken_back_when_the_caller_stops() -> None:
    class Waiting(Lossy):
        def submit(self, function, /, *arguments) -> Future:
            future: Future = Future()
            self.given.append(future)
            if len(self.given) == 1:
                future.set_result(function(*arguments))
            return future

    waiting = Waiting()
    come = spread(square, PLACES, about=ABOUT, executor=waiting)
    next(come)
    come.close()
    assert [one.cancelled() for one in waiting.given] == [False] + [True] * 5


@pytest.mark.parametrize(
    "line",
    [
        "[" * 10**5,
        '{"point": {"x": 5.0}, "numbers": {"y": "25"}}',
        '{"point": {"x": 5.0}, "numbers": {"y": [25]}}',
        '{"point": {"x": 5.0}, "numbers": {"y": true}}',
        "\udcff",
    ],
    ids=range(5),
)
def test_lines_that_no_sweep_has_written(tmp_path: Path, line: str) -> None:
    file = tmp_path / "map.jsonl"
    content = json.dumps({"vegrad-sweep": 1, **ABOUT}) + f"\n{line}\n"
    file.write_bytes(content.encode(errors="surrogateescape"))
    assert numbers(spread(square, PLACES, about=ABOUT, file=file))[5] == 25


@pytest.mark.parametrize("content", [b"\xff\xfe\n", b"[" * 10**5])
def test_files_that_are_no_sweep_at_all(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "other"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="is not the file of a sweep"):
        list(spread(square, PLACES, about=ABOUT, file=file))
    assert file.read_bytes() == content


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"lie in a folder that is there: .*no.map'$"):
        next(spread(square, PLACES, about=ABOUT, file=tmp_path / "no" / "map"))
