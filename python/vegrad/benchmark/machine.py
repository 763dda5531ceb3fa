"""A description of the machine, and the environment of the process that measures."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from vegrad import _core
from vegrad.benchmark.timing import Json

# Beginnings of environment variables that change the speed of a library.
TUNING = ("OPENBLAS_", "MKL_", "OMP_", "GOMP_", "KMP_", "NVPL_", "XLA_", "JAX_", "ONEDNN_")


def cores() -> list[int]:
    """Return the cores that this process may use, by one hardware thread of each."""
    if not hasattr(os, "sched_getaffinity"):
        return list(range(os.cpu_count() or 1))
    chosen: dict[str | int, int] = {}
    for core in sorted(os.sched_getaffinity(0)):
        siblings = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
        chosen.setdefault(siblings.read_text() if siblings.exists() else core, core)
    return list(chosen.values())


def cpu() -> str:
    """Return the name of the processor, with its numbers where the system tells them."""
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    pairs = [line.partition(":") for line in lines if ":" in line]
    fields = {key.strip(): value.strip() for key, _, value in reversed(pairs)}
    if "model name" not in fields:
        return platform.processor() or platform.machine()
    numbers = [fields.get(key, "?") for key in ("cpu family", "model", "stepping")]
    return "{} (family {}, model {}, stepping {})".format(fields["model name"], *numbers)


def caches() -> dict[str, str]:
    """Return the sizes of the caches of one core, as {"L1d": "32K", …}, where the system tells."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((index / n).read_text().strip() for n in ("level", "type", "size"))
        if kind != "Instruction":
            found[f"L{level}" + ("d" if kind == "Data" else "")] = size
    return found


def load() -> float | None:
    """Return the mean number of running processes in the last minute, where the system tells."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def machine() -> Json:
    """Describe processor, cores, caches, system and load, without names of hosts or folders."""
    system = f"{platform.system()} {platform.machine()}"
    return {
        "cpu": cpu(),
        "cores": len(cores()),
        "caches": caches(),
        "system": system,
        "load_before": load(),
    }


def versions() -> Json:
    """Return the versions of Python and all libraries; call it where the libraries are loaded."""
    found: Json = {"python": platform.python_version()}
    for name in ("numpy", "torch", "jax", "jaxlib"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    if importlib.util.find_spec("threadpoolctl"):
        pools: Any = importlib.import_module("threadpoolctl")
        found["blas"] = [
            " ".join(str(lib.get(key)) for key in ("internal_api", "version", "architecture"))
            for lib in pools.threadpool_info()
            if lib["user_api"] == "blas"
        ]
    if "torch" in sys.modules:
        torch: Any = sys.modules["torch"]
        lines = torch.__config__.show().splitlines()
        found["torch_math"] = [line.strip(" -") for line in lines if "Math Kernel" in line]
        found["torch_isa"] = torch.backends.cpu.get_cpu_capability()
    isa = _core.isa() + (" with AMX" if _core.matrix_unit() else "")
    return found | {"vegrad": _core.__version__, "isa": isa}


def environment(threads: int) -> dict[str, str]:
    """Return the user's environment variables, with this number of threads for every library.

    Other variables that change the speed of a library are left out.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith(TUNING)}
    for name in ("OMP", "OPENBLAS", "MKL", "VEGRAD"):
        kept[f"{name}_NUM_THREADS"] = str(threads)
    if threads == 1:  # if more are wanted, XLA takes as many as the process has cores
        kept["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    return kept | {"JAX_PLATFORMS": "cpu"}
