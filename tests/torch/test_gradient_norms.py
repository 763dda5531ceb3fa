"""Two gloo processes: DistributedDataParallel and sharded parameters (FSDP2)."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="gloo between processes is tried on Linux"),
    pytest.mark.filterwarnings("ignore"),
]


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(16, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4)]
    return torch.nn.Sequential(*layers)


def batch() -> torch.Tensor:
    return torch.linspace(-1, 1, 8 * 16).reshape(8, 16).sin()


def work(rank: int, folder: str, kind: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    from vegrad.torch import AdamW, Monitor, clip_grad_norm_, fuse

    wrapped = model()
    if kind != "fsdp":
        wrapped = fuse(wrapped) if kind.startswith("fused") else wrapped
        wrapped = torch.nn.parallel.DistributedDataParallel(
            wrapped, gradient_as_bucket_view=kind == "fused, views"
        )
        optimizer = AdamW(wrapped.parameters())
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (2,))
        for layer in (wrapped[0], wrapped[2], wrapped):
            fully_shard(layer, mesh=mesh)
        optimizer = AdamW(wrapped.parameters())
    monitor = Monitor(wrapped)
    norm = None
    for _ in range(2):
        optimizer.zero_grad()
        wrapped(batch().chunk(2)[rank]).square().mean().backward()
        norm = clip_grad_norm_(wrapped.parameters(), 1e9)
        optimizer.step()
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    np.savez(
        f"{folder}/{rank}.npz",
        gradients=monitor.history.gradient_norms,
        names=np.array(monitor.parameters),
        norm=float(norm),
    )
    torch.distributed.barrier()
    # Gloo's threads now and then abort a process that ends as usual.
    os._exit(0)


@pytest.mark.parametrize("kind", ["ddp", "fsdp", "fused", "fused, views"])
def test_two_processes_see_the_whole_batch(kind: str, tmp_path: Path) -> None:
    from vegrad.torch import AdamW, Monitor

    torch.multiprocessing.spawn(work, (str(tmp_path), kind), nprocs=2)
    plain = model()
    monitor, optimizer = Monitor(plain), AdamW(plain.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        plain(batch()).square().mean().backward()
        optimizer.step()
    for rank in range(2):
        seen = np.load(tmp_path / f"{rank}.npz")
        np.testing.assert_allclose(seen["gradients"], monitor.history.gradient_norms, rtol=1e-4)
        assert seen["names"].tolist() == monitor.parameters
        np.testing.assert_allclose(seen["norm"], monitor.history[-1].gradient_norm, rtol=1e-4)
