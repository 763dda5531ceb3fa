"""torchrun with DDP, FSDP2 and tensor parallelism: every process has the same report."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vegrad

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_available(), reason="no torch.distributed"),
    pytest.mark.skipif(sys.platform != "linux", reason="gloo between processes is tried on Linux"),
    pytest.mark.filterwarnings("ignore"),
]
WAYS = ("ddp", "fsdp", "tp", "both")
SIZES = ("activation_rms", "delta_norm", "gradient_norm")
nn = torch.nn


def model() -> Any:
    torch.manual_seed(0)
    layers = [nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)]
    return nn.Sequential(*layers)


def batch() -> tuple[Any, Any]:
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    return x, x[:, :3].argmax(1)


def wrapped(way: str, size: int) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    net = model()
    if way == "ddp":
        return nn.parallel.DistributedDataParallel(net)
    shape = (2, size // 2) if way == "both" else (size,)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("data", "parts")[-len(shape) :])
    if way != "fsdp":
        part = mesh["parts"] if way == "both" else mesh
        parallelize_module(net, part, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    if way != "tp":
        whole = mesh["data"] if way == "both" else mesh
        for layer in (net[0], net[2], net[4], net):
            fully_shard(layer, mesh=whole)
    return net


def diverged() -> Any:
    x, target = np.eye(8, dtype=np.float32), np.ones((8, 1), np.float32)
    net = vegrad.MLP([8, 8, 1], activation="identity", loss="mse", seed=0)
    steps = {"batch_size": 8, "epochs": 20, "progress": False, "on_finding": None}
    return net.fit(x, target, optimizer=vegrad.SGD(10.0), **steps)


def gathers(*_: object) -> None:
    raise AssertionError("a whole parameter was gathered")


def spoilt(way: str, size: int, rank: int) -> list[str]:
    """Return what is found where the last process has a part of a weight that is not finite."""
    from vegrad.torch import Monitor

    net, (x, y) = wrapped(way, size), batch()
    weight = (net.module if way == "ddp" else net)[2].weight
    if rank == size - 1 or way == "ddp":
        with torch.no_grad():
            (weight.to_local() if way != "ddp" else weight)[0, 0] = float("nan")
    monitor = Monitor(net, on_finding=None)
    nn.functional.cross_entropy(net(x), y).backward()
    monitor.step()
    return [one.message for one in monitor.report(together=True).findings]


def of_a_row(size: int, rank: int) -> tuple[list[str], list[str]]:
    """Return what one process says, and all together, of a NaN in the batch of the last one."""
    from vegrad.torch import Monitor

    net, (x, y) = wrapped("ddp", size), batch()
    monitor = Monitor(net, on_finding=None)
    if rank == size - 1:
        x[5, 3] = float("nan")
    nn.functional.cross_entropy(net(x), y).backward()
    monitor.step()
    alone = [one.message for one in monitor.report().findings]
    return alone, [one.cause for one in monitor.report(together=True).findings]


def with_one_small() -> list[tuple[str, str]]:
    """Return what is found, and where, if the fourth of eight layers has small weights."""
    from torch.distributed.fsdp import fully_shard
    from vegrad.torch import diagnose

    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(8)))
    with torch.no_grad():
        for n, layer in enumerate(net):
            nn.init.orthogonal_(layer.weight)
            layer.weight *= 1e-4 if n == 3 else 1.0
    x, y = batch()
    for part in (*net, net):
        fully_shard(part)
    found = diagnose(net, nn.CrossEntropyLoss(), x, y).findings
    return [(one.cause, one.sites[0].name) for one in found]


def work() -> dict[str, Any]:
    """Return what this process sees of each way to train."""
    from torch.distributed.tensor import DTensor
    from vegrad.torch import Monitor, diagnose
    from vegrad.torch.together import together

    torch.distributed.init_process_group("gloo")
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    DTensor.full_tensor = gathers  # type: ignore[method-assign]
    found: dict[str, Any] = {}
    for way in WAYS if size == 4 else WAYS[:3]:
        net, (x, y) = wrapped(way, size), batch()
        before = [one.detach().clone() for one in net.buffers()]
        seen = diagnose(net, nn.CrossEntropyLoss(), x, y)
        after_training = diagnose(net, nn.CrossEntropyLoss(), x, y, history=diverged())
        after = list(net.buffers())
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert all(one.grad is None for one in net.parameters())
        monitor, optimizer = Monitor(net, on_finding=None), torch.optim.SGD(net.parameters(), 0.1)
        for _ in range(3):
            own = slice(None) if way == "tp" else slice(rank, None, size)
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[own]), y[own]).backward()
            optimizer.step()
        alone, report = monitor.report(), monitor.report(together=True)
        found[way] = {
            "diagnosis": str(seen),
            "after_training": str(after_training),
            "rows": [row | {} for row in getattr(seen, "rows", ())],
            "alone": str(alone),
            "report": str(report),
        }
        found[way]["spoilt"] = spoilt(way, size, rank)
    found["small"] = with_one_small()
    found["row"] = of_a_row(size, rank)
    if rank == size - 1:
        other = replace(report, rows=report.rows[:-1])
    try:
        together(other if rank == size - 1 else report)
    except ValueError as error:
        found["error"] = str(error)
    return found


@pytest.fixture(scope="module", params=[2, 4])
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What the processes of one torchrun have seen."""
    folder = tmp_path_factory.mktemp("run")
    script = folder / "run.py"
    script.write_text(
        "import json, os, sys, torch\n"
        "torch.set_num_threads(1)\n"
        "from tests.torch.test_together import work\n"
        "found = work()\n"
        f"path = f'{folder}/' + os.environ['RANK'] + '.json'\n"
        "open(path, 'w').write(json.dumps(found))\n"
        "torch.distributed.barrier()\n"
        "sys.stderr.flush()\n"
        "os._exit(0)\n"  # Gloo's threads now and then abort a process that ends as usual
    )
    root = str(Path(__file__).parents[2])
    line = ["--standalone", f"--nproc-per-node={request.param}", str(script)]
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *line],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([root, *sys.path]), "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return [json.loads((folder / f"{n}.json").read_text()) for n in range(request.param)]


def test_all_processes_have_the_same_report(seen: list[Any]) -> None:
    ways = WAYS if len(seen) == 4 else WAYS[:3]
    for way in ways:
        for other in seen[1:]:
            assert other[way]["diagnosis"] == seen[0][way]["diagnosis"]
            assert other[way]["report"] == seen[0][way]["report"]
    assert any(other[way]["alone"] != seen[0][way]["alone"] for way in ways for other in seen)


def test_a_row_that_another_process_has_is_its_own_to_tell(seen: list[Any]) -> None:
    *others, last = [one["row"] for one in seen]
    assert "x[5, 3] is nan" in last[0][0]
    for (told,), _ in others:
        assert "those that flow through the modules are in this process" in told
    assert all(together == ["nonfinite-input"] for _, together in (*others, last))


def test_a_history_is_judged_too(seen: list[Any]) -> None:
    for way in WAYS if len(seen) == 4 else WAYS[:3]:
        told = {one[way]["after_training"] for one in seen}
        assert len(told) == 1
        assert "learning-rate-high" in told.pop()
        assert "learning-rate-high" not in seen[0][way]["diagnosis"]


def test_sizes_are_those_of_the_whole_model(seen: list[Any]) -> None:
    from vegrad.torch import Monitor

    net, (x, y) = model(), batch()
    monitor = Monitor(net, on_finding=None)
    loss = nn.functional.cross_entropy(net(x), y)
    loss.backward()
    monitor.step(float(loss.detach()))
    wanted = monitor.report().rows
    for way in ("fsdp", "tp"):
        rows = seen[0][way]["rows"]
        assert [row["module"] for row in rows] == [row["module"] for row in wanted]
        for row, one in zip(rows, wanted, strict=True):
            for name in SIZES:
                # δ of a layer whose outputs are shared out is that of a part of them
                part = name == "delta_norm" and way == "tp" and row["module"] == "0"
                times = np.sqrt(len(seen)) if part else 1.0
                np.testing.assert_allclose(row[name] * times, one[name], rtol=1e-4)


def test_a_value_that_is_not_finite_on_one_process_is_told_on_all(seen: list[Any]) -> None:
    for way in WAYS if len(seen) == 4 else WAYS[:3]:
        found = [one[way]["spoilt"] for one in seen]
        assert all(one == found[0] for one in found)
        assert any("not finite" in one for one in found[0])
    assert any("its weight is not" in one for one in seen[0]["fsdp"]["spoilt"])
    false = "its input and weights are finite"
    assert not any(false in one for one in seen[0]["fsdp"]["spoilt"])


def test_one_layer_with_small_weights_is_named(seen: list[Any]) -> None:
    for one in seen:
        assert one["small"] == [["weight-scale", "3"]]


def test_processes_with_other_modules_are_told(seen: list[Any]) -> None:
    for one in seen:
        assert "the model must have the same modules on all ranks" in one["error"]


def test_a_process_alone_is_all_there_are() -> None:
    from vegrad.torch import Monitor

    net, (x, y) = model(), batch()
    monitor = Monitor(net, on_finding=None)
    nn.functional.cross_entropy(net(x), y).backward()
    monitor.step()
    assert str(monitor.report(together=True)) == str(monitor.report())
