"""What every test shares: each instruction set, several thread counts, hypothesis's settings."""

import os
import signal
import sys
from collections.abc import Iterator

import pytest
import vegrad
from hypothesis import HealthCheck, settings
from vegrad import _core

pytest.register_assert_rewrite(
    "tests.clipping_checks", "tests.core.flow_checks", "tests.reference_buffers"
)

settings.register_profile(
    "vegrad",
    deadline=None,  # the machine may be busy
    max_examples=40,
    derandomize="CI" in os.environ,
    # The fixtures below set the instruction set or the thread count: the same for every example.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("vegrad")


def pytest_sessionfinish() -> None:
    """Have this process write what it has run of C++ beside the objects (nox -s coverage).

    Now: pytest-xdist kills processes that take long to end.
    """
    os.environ.pop("GCOV_PREFIX", None)
    getattr(_core, "write_coverage", int)()


@pytest.fixture(autouse=True, scope="session")
def ctrl_c_is_heard() -> Iterator[None]:
    """A shell has those that it runs in the background ignore Ctrl-C, which tests press."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(params=[*_core.isas(), *(["amx"] if _core.has_matrix_unit() else [])])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of this machine in turn; amx is avx512 with the matrix unit."""
    before, unit = vegrad.isa(), _core.matrix_unit()
    name = "avx512" if request.param == "amx" else request.param
    _core.use_isa(name)
    _core.use_matrix_unit(request.param == "amx")
    yield name
    _core.use_isa(before)
    _core.use_matrix_unit(unit)


@pytest.fixture(params=[1, 2, 3, 7])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Fewer threads than cores, as many, more."""
    before = vegrad.num_threads()
    vegrad.set_num_threads(request.param)
    yield request.param
    vegrad.set_num_threads(before)


@pytest.fixture
def keep_threads() -> Iterator[None]:
    """For a test that changes the thread count itself, and wants all threads to have work."""
    before = vegrad.num_threads()
    _core.share_everything(True)
    yield
    _core.share_everything(False)
    vegrad.set_num_threads(before)


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    """PyTorch's threads wait for each other by spinning, whoever else needs the cores."""
    torch = sys.modules["torch"]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
