"""Names that users import stay importable, wherever the code behind them moves."""

import importlib
import subprocess
import sys

import pytest

VEGRAD = [
    "Adam",
    "AdamW",
    "Attempt",
    "Buffers",
    "Clipped",
    "Comparison",
    "Cure",
    "Diagnosis",
    "Finding",
    "FindingError",
    "FindingWarning",
    "Flow",
    "History",
    "Lion",
    "MLP",
    "Measurement",
    "NonFiniteGradientError",
    "Proof",
    "RNN",
    "RandomTruncation",
    "Run",
    "RunLog",
    "SGD",
    "Statistics",
    "TimeFlow",
    "Truncation",
    "__version__",
    "adaptive_clip_",
    "clip_by_block_rms_",
    "clip_by_global_norm_",
    "clip_by_norm_",
    "clip_by_value_",
    "clipping",
    "compare",
    "cure",
    "datasets",
    "diagnose",
    "diagnose_gradients",
    "diagnose_history",
    "diagnose_run",
    "isa",
    "lsuv_",
    "measure",
    "norm",
    "norms",
    "num_threads",
    "optim",
    "read_run",
    "set_num_threads",
    "theory",
    "truncation",
]
CLIPPING = [
    "Value",
    "Norm",
    "GlobalNorm",
    "BlockRMS",
    "Adaptive",
    "AutoClip",
    "ZClip",
    "AdaGC",
    "Clipped",
]
OPTIM = ["SGD", "Adam", "AdamW", "Lion", "Optimizer", "cosine", "warmup"]
THEORY = [
    "CriticalPoint",
    "DepthScales",
    "ExpectedFlow",
    "FAMILIES",
    "INITIALIZERS",
    "LogMoments",
    "chi",
    "chi_parallel",
    "correlation_fixed_point",
    "correlation_map",
    "critical_point",
    "depth_scales",
    "derivative_second_moment",
    "expected_flow",
    "fixed_point",
    "gain",
    "gradient_log_moments",
    "mean",
    "normalized_chi",
    "second_moment",
    "sigma_w",
    "variance_map",
]
TORCH = [
    "Adam",
    "AdamW",
    "FusedMLP",
    "Lion",
    "ModelCure",
    "ModelDiagnosis",
    "Monitor",
    "MonitorHistory",
    "NonFinite",
    "SGD",
    "clip_grad_norm_",
    "clip_grad_value_",
    "clip_grads_with_norm_",
    "cure",
    "diagnose",
    "fuse",
    "get_total_norm",
    "lsuv_",
]


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("vegrad", VEGRAD),
        ("vegrad.clipping", CLIPPING),
        ("vegrad.optim", OPTIM),
        ("vegrad.theory", THEORY),
        (
            "vegrad.datasets",
            ["load", "NAMES", "load_sequences", "temporal_order", "adding", "copy"],
        ),
    ],
)
def test_names_are_importable(module: str, names: list[str]) -> None:
    found = importlib.import_module(module)
    assert [name for name in names if not hasattr(found, name)] == []


def test_all_lists_what_is_there() -> None:
    found = importlib.import_module("vegrad")
    assert sorted(found.__all__) == sorted(VEGRAD)


def test_torch_names_are_importable() -> None:
    pytest.importorskip("torch")
    found = importlib.import_module("vegrad.torch")
    assert [name for name in TORCH if not hasattr(found, name)] == []
    # Pickles of cured models name this class by its module.
    assert importlib.import_module("vegrad.torch.architecture").Residual
    assert importlib.import_module("vegrad.torch.callbacks")


def test_names_for_scikit_learn_are_importable() -> None:
    pytest.importorskip("sklearn", minversion="1.6")
    found = importlib.import_module("vegrad.sklearn")
    names = ["EstimatorCure", "MLPClassifier", "MLPRegressor", "cure", "diagnose"]
    assert sorted(found.__all__) == names
    assert [name for name in names if not hasattr(found, name)] == []
    # Pickles of fitted estimators name their classes by this module.
    assert importlib.import_module("vegrad.sklearn.estimators.mlp").MLPClassifier


def test_importing_vegrad_imports_kernels_only() -> None:
    """Networks, rules and reports come when they are asked for."""
    code = "import sys, vegrad; print(*(n for n in sys.modules if n.startswith('vegrad.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    rooms = {name.split(".")[1] for name in done.stdout.split()}
    assert rooms == {"_core", "arrays", "clipping", "optim"}
    assert set(dir(importlib.import_module("vegrad"))) >= set(VEGRAD)


def test_importing_vegrad_takes_few_modules_beside_numpy() -> None:
    """A dozen of its own, and no more of Python's: each takes a millisecond or so."""
    code = (
        "import sys, numpy; before = {*sys.modules}; import vegrad; print(*{*sys.modules} - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    brought = done.stdout.split()
    assert sum(name.startswith("vegrad") for name in brought) <= 13
    assert len(brought) <= 27


def test_importing_vegrad_imports_no_framework() -> None:
    code = "import sys, vegrad; print({'torch', 'jax', 'matplotlib', 'sklearn'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("package", ["torch", "sklearn", "jax"])
def test_a_package_says_what_it_needs(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [one for one in sys.modules if one.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    for name in [one for one in sys.modules if one.startswith(f"vegrad.{package}")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'needs .*: pip install "vegrad\[{package}\]"'):
        importlib.import_module(f"vegrad.{package}")
