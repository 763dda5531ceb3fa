"""The drop-ins for torch.nn.utils, compared with PyTorch's own functions."""

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import vegrad.torch as ours  # noqa: E402
from vegrad import _core, clipping  # noqa: E402

theirs = torch.nn.utils
SHAPES = [(5, 7), (13,), (), (64, 33), (4097,), (2, 3, 4, 5)]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_order = pytest.mark.parametrize("order", [2, 1, 3.5, 0.5, "inf", float("inf"), 0, -1, -2.5])
LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "dense": lambda g: g,
    "transposed": lambda g: g.transpose(0, -1).contiguous().transpose(0, -1) if g.ndim > 1 else g,
    "strided": lambda g: torch.stack([g, g], -1).unbind(-1)[0],
    "channels last": lambda g: g.to(memory_format=torch.channels_last) if g.ndim == 4 else g,
}


def parameters(
    dtype: torch.dtype = None, scale: float = 1.0, layout: str = "dense"
) -> list[torch.Tensor]:
    """Return parameters whose gradients are the same at every call; one has none."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for shape in SHAPES:
        grad = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
        grad = LAYOUTS[layout](grad.to(dtype or torch.float32))
        found.append(torch.nn.Parameter(torch.zeros_like(grad)))
        found[-1].grad = grad
    return [*found[:2], torch.nn.Parameter(torch.zeros(3)), *found[2:]]


def assert_same(got: list[Any], want: list[Any], **tolerance: float) -> None:
    for a, b in zip(got, want, strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            assert a.grad.stride() == b.grad.stride()
            torch.testing.assert_close(a.grad, b.grad, equal_nan=True, **tolerance)


@every_dtype
@every_order
@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e6, float("inf")])
def test_clip_grad_norm_gives_what_torch_gives(
    dtype: torch.dtype, order: Any, max_norm: float
) -> None:
    got, want = parameters(dtype), parameters(dtype)
    ours_norm = ours.clip_grad_norm_(got, max_norm, order)
    norm = theirs.clip_grad_norm_(want, max_norm, order)
    torch.testing.assert_close(ours_norm, norm)
    if norm.isfinite() or max_norm == 0:  # else it is beyond float16, and PyTorch's gradients are 0
        assert_same(got, want)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("foreach", [None, True, False])
def test_layouts_and_modes(layout: str, foreach: Any) -> None:
    got, want = parameters(layout=layout), parameters(layout=layout)
    places = [None if one.grad is None else one.grad.data_ptr() for one in got]
    torch.testing.assert_close(
        ours.clip_grad_norm_(got, 1.0, foreach=foreach),
        theirs.clip_grad_norm_(want, 1.0, foreach=foreach),
    )
    assert_same(got, want)
    ours.clip_grad_value_(got, 0.003, foreach)
    theirs.clip_grad_value_(want, 0.003, foreach)
    assert_same(got, want)
    assert places == [None if one.grad is None else one.grad.data_ptr() for one in got]


@every_dtype
@pytest.mark.parametrize("value", [0.0, 0.4, 100.0, -0.5, float("inf")])
def test_clip_grad_value(dtype: torch.dtype, value: float) -> None:
    got, want = parameters(dtype), parameters(dtype)
    for some in (got, want):
        some[0].grad[0, :3] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    assert ours.clip_grad_value_(got, value) is None
    theirs.clip_grad_value_(want, value)
    assert_same(got, want, rtol=0, atol=0)


@pytest.mark.parametrize("bad", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("order", [2, 1, float("inf")])
def test_elements_that_are_not_finite(bad: float, order: float) -> None:
    got, want = parameters(), parameters()
    got[1].grad[3] = want[1].grad[3] = bad
    before = [one.grad is not None and one.grad.clone() for one in got]
    with pytest.raises(RuntimeError, match="is non-finite, so it cannot be clipped") as caught:
        ours.clip_grad_norm_(got, 1.0, order, error_if_nonfinite=True)
    assert "grads[1] must be finite" in str(caught.value.__cause__)
    with pytest.raises(ours.clip.NonFiniteGradientError, match=r"grads\[1\]"):
        ours.clip_grad_norm_(got, 1.0, order, error_if_nonfinite=True, compat=False)
    with pytest.raises(RuntimeError, match="is non-finite"):
        ours.get_total_norm([one.grad for one in got if one.grad is not None], order, True)
    for one, kept in zip(got, before, strict=True):
        assert one.grad is None or torch.equal(one.grad.nan_to_num(7), kept.nan_to_num(7))
    norm = ours.clip_grad_norm_(got, 1.0, order)
    torch.testing.assert_close(norm, theirs.clip_grad_norm_(want, 1.0, order), equal_nan=True)
    assert_same(got, want)


def test_norms_that_torch_cannot_hold() -> None:
    """PyTorch's squares overflow, so that it makes every gradient 0."""
    got = parameters(scale=1e30)
    exact = torch.linalg.vector_norm(
        torch.cat([one.grad.double().flatten() for one in got if one.grad is not None])
    )
    norm = ours.clip_grad_norm_(got, 1.0)
    torch.testing.assert_close(norm, exact.float())
    torch.testing.assert_close(ours.clip_grad_norm_(got, 9.0, compat=False).item(), 1.0)
    assert theirs.clip_grad_norm_(parameters(scale=1e30), 1.0) == torch.inf


@pytest.mark.parametrize("first", DTYPES, ids=str)
@pytest.mark.parametrize("second", DTYPES, ids=str)
def test_the_dtype_of_a_norm(first: torch.dtype, second: torch.dtype) -> None:
    several = [*parameters(first)[:1], *parameters(second)[1:2]]
    want = theirs.clip_grad_norm_(several, 1e9)
    got = ours.clip_grad_norm_(several, 1e9)
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want, rtol=1e-2, atol=0)


def test_exact_numbers() -> None:
    """The 1e-6 in PyTorch's divisor is most of a small gradient."""
    got, want, exact = (parameters(torch.float64, 1e-8) for _ in range(3))
    norm = theirs.clip_grad_norm_(want, 1e-7)
    torch.testing.assert_close(ours.clip_grad_norm_(got, 1e-7), norm)
    assert_same(got, want)
    true = ours.clip_grad_norm_(exact, 1e-7, compat=False)
    assert true.dtype == torch.float64
    torch.testing.assert_close(true, norm)
    torch.testing.assert_close(ours.clip_grad_norm_(exact, 1.0, compat=False).item(), 1e-7)


def test_what_may_be_passed() -> None:
    got, want = parameters(), parameters()
    for make in (lambda p: p, tuple, iter, lambda p: (one for one in p), lambda p: p[0]):
        a, b = ours.clip_grad_norm_(make(got), 0.7), theirs.clip_grad_norm_(make(want), 0.7)
        torch.testing.assert_close(a, b)
        ours.clip_grad_value_(make(got), 0.01)
        theirs.clip_grad_value_(make(want), 0.01)
        assert_same(got, want)
    with pytest.warns(UserWarning, match="is an empty generator"):
        assert ours.clip_grad_norm_((one for one in []), 1.0) == 0.0
    assert ours.clip_grad_norm_([], 1.0) == 0.0
    assert ours.clip_grad_norm_([torch.nn.Parameter(torch.zeros(2))], 1.0) == 0.0
    assert ours.get_total_norm([]) == 0.0
    assert ours.clip_grad_value_([], 1.0) is None
    torch.testing.assert_close(ours.get_total_norm(torch.ones(4)), torch.tensor(2.0))
    for limit in (-1.0, float("nan")):
        a, b = ours.clip_grad_norm_(got, limit), theirs.clip_grad_norm_(want, limit)
        torch.testing.assert_close(a, b)
        assert_same(got, want)


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.b = torch.nn.Linear(3, 3)
        self.a = torch.nn.Sequential(self.b, torch.nn.Linear(3, 3, bias=False))
        self.a[1].weight = self.b.weight
        self.own = torch.nn.Parameter(torch.zeros(2))
        self.register_parameter("none", None)
        self.empty = None


class Fewer(torch.nn.Linear):
    def named_parameters(self, *arguments: Any, **options: Any) -> Iterator[tuple[str, Any]]:
        return iter([("weight", self.weight)])


def test_the_parameters_of_a_module() -> None:
    """The parameters are read from the module in the order of module.parameters(), each once."""
    model = torch.nn.Sequential(Tied(), torch.nn.LSTM(3, 4, 2), Fewer(2, 2))
    for make in (
        lambda: model.parameters(),
        lambda: model.parameters(recurse=False),
        lambda: model[0].parameters(recurse=False),
        lambda: model[2].parameters(),
        lambda: model[0].buffers(),
    ):
        assert [*map(id, ours.clip.listed(make()))] == [*map(id, make())]
    begun = model.parameters()
    next(begun)
    assert [*map(id, ours.clip.listed(begun))] == [*map(id, model.parameters())][1:]
    used = model.parameters()
    assert len(ours.clip.listed(used)) == len(list(model.parameters()))
    assert ours.clip.listed(used) == []


def odd_ones() -> dict[str, Callable[[], Any]]:
    def sparse() -> Any:
        weight = torch.nn.Embedding(10, 3, sparse=True)
        torch.manual_seed(0)
        weight(torch.tensor([1, 2, 2])).square().sum().backward()
        return weight.weight

    def complex_() -> Any:
        one = torch.nn.Parameter(torch.zeros(3, dtype=torch.complex64))
        one.grad = torch.tensor([1 + 2j, 3j, -1])
        return one

    return {"sparse": sparse, "complex": complex_}


@pytest.mark.parametrize("kind", odd_ones())
@pytest.mark.parametrize("alone", [True, False])
def test_what_the_kernels_cannot_read_goes_to_torch(kind: str, alone: bool) -> None:
    make = odd_ones()[kind]
    got, want = ([make()] if alone else [*parameters(), make()] for _ in range(2))
    if kind == "sparse":
        for function in (ours, theirs):  # neither can clip them
            with pytest.raises(NotImplementedError, match="Sparse"):
                function.clip_grad_norm_(got, 1.0)
        return
    torch.testing.assert_close(ours.clip_grad_norm_(got, 1.0), theirs.clip_grad_norm_(want, 1.0))
    assert_same(got, want)
    grads = [one.grad for one in got if one.grad is not None]
    torch.testing.assert_close(ours.get_total_norm(grads), theirs.get_total_norm(grads))


@pytest.mark.parametrize("dense", [[1.0, 2.0], [1.0, float("inf")], [0.0, float("nan")]])
@pytest.mark.parametrize("other", [1.0, float("inf"), float("nan")])
def test_elements_that_are_not_finite_beside_what_goes_to_torch(dense: Any, other: float) -> None:
    found = []
    for function in (ours, theirs):
        several = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
        several[1] = torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))
        several[0].grad = torch.tensor(dense)
        several[1].grad = torch.tensor([1 + 1j, other])
        norm = function.clip_grad_norm_(several, 0.5)
        found.append([norm, several[0].grad, torch.view_as_real(several[1].grad)])
    torch.testing.assert_close(*found, equal_nan=True)


def test_other_devices() -> None:
    """Meta tensors stand for any device: PyTorch's functions get them, and ours get the rest."""
    meta = torch.nn.Parameter(torch.zeros(3, device="meta"))
    meta.grad = torch.zeros(3, device="meta")
    assert ours.clip_grad_norm_([meta], 1.0).device.type == "meta"
    assert ours.get_total_norm([meta.grad]).device.type == "meta"
    got, want = parameters(), parameters()
    ours.clip_grad_value_([*got, meta], 0.1)
    theirs.clip_grad_value_([*want, meta], 0.1)
    assert_same(got, want)
    total = torch.tensor(5.0)
    ours.clip_grads_with_norm_([*got, meta], 1.0, total)
    theirs.clip_grads_with_norm_([*want, meta], 1.0, total)
    assert_same(got, want)


def test_the_same_gradient_twice() -> None:
    got, want = parameters()[:1] * 2, parameters()[:1] * 2
    torch.testing.assert_close(ours.clip_grad_norm_(got, 0.5), theirs.clip_grad_norm_(want, 0.5))
    assert_same(got, want)


@every_dtype
@every_order
def test_total_norms(dtype: torch.dtype, order: Any) -> None:
    grads = [one.grad for one in parameters(dtype) if one.grad is not None]
    torch.testing.assert_close(
        ours.get_total_norm(grads, order), theirs.get_total_norm(grads, order)
    )
    mixed = [*grads, torch.ones(3)]
    got, want = ours.get_total_norm(iter(mixed), order), theirs.get_total_norm(iter(mixed), order)
    assert got.dtype == want.dtype
    if want.isfinite():  # PyTorch rounds the norm of each tensor to its dtype
        torch.testing.assert_close(got, want, rtol=1e-2, atol=0)
    assert ours.get_total_norm(grads, 2, compat=False).dtype == torch.float64


@pytest.mark.parametrize("total", [0.5, 5.0, 1e9, float("inf"), float("nan"), 0.0])
def test_scaling_by_a_norm(total: float) -> None:
    got, want = parameters(), parameters()
    for some, function in ((got, ours), (want, theirs)):
        assert function.clip_grads_with_norm_(some, 2.0, torch.tensor(total)) is None
    assert_same(got, want)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_scaling_gradients_of_which_some_are_not_finite(bad: float) -> None:
    """Gradients that are not finite are scaled by somebody else's norm, which is."""
    got, want = parameters(), parameters()
    got[1].grad[3] = want[1].grad[3] = bad
    for some, function in ((got, ours), (want, theirs)):
        function.clip_grads_with_norm_(some, 2.0, torch.tensor(5.0))
    assert_same(got, want)


@pytest.mark.filterwarnings("error")
def test_norms_to_scale_by_of_every_kind() -> None:
    for total in (torch.tensor(5), torch.tensor(5.0, requires_grad=True), torch.tensor(5 + 0j)):
        outcomes = []
        for some, function in ((parameters(), ours), (parameters(), theirs)):
            try:
                function.clip_grads_with_norm_(some, 2.0, total)
                outcomes.append(some)
            except RuntimeError as error:
                outcomes.append(str(error))
        if isinstance(outcomes[1], str):
            assert outcomes[0] == outcomes[1]
        else:
            assert_same(*outcomes)
    for function in (ours, theirs):
        with pytest.raises(RuntimeError, match=r"0 dim|expected to be 0"):
            function.clip_grads_with_norm_(parameters(), 2.0, torch.tensor([5.0, 1.0]))


def test_autograd_sees_that_gradients_changed() -> None:
    got = parameters()
    before = [one.grad._version for one in got if one.grad is not None]
    ours.clip_grad_norm_(got, 1e9)
    assert before == [one.grad._version for one in got if one.grad is not None]
    ours.clip_grad_norm_(got, 1e-3)
    assert all(one.grad._version for one in got if one.grad is not None)


def test_importing_vegrad_does_not_import_torch() -> None:
    code = "import sys, vegrad; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = "import sys; sys.modules['torch'] = None; import vegrad.torch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip().endswith('vegrad.torch needs PyTorch: pip install "vegrad[torch]"')


def test_names_and_signatures_are_torchs() -> None:
    import inspect

    for name in ("clip_grad_norm_", "clip_grad_value_", "get_total_norm", "clip_grads_with_norm_"):
        want = inspect.signature(getattr(theirs, name)).parameters
        got = [p for p in inspect.signature(getattr(ours, name)).parameters if p != "compat"]
        assert got == list(want)


@pytest.mark.filterwarnings("ignore")
def test_compiled_functions_use_torchs() -> None:
    got, want = parameters(), parameters()

    @torch.compile(backend="eager")
    def clip(some: Any) -> Any:
        ours.clip_grad_value_(some, 1.0)
        ours.clip_grads_with_norm_(some, 1.0, ours.get_total_norm([some[0].grad]))
        return ours.clip_grad_norm_(some, 0.01)

    theirs.clip_grad_value_(want, 1.0)
    theirs.clip_grads_with_norm_(want, 1.0, theirs.get_total_norm([want[0].grad]))
    torch.testing.assert_close(clip(got), theirs.clip_grad_norm_(want, 0.01))
    assert_same(got, want)


def test_after_a_backward_pass_of_a_model() -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    layer(torch.randn(3, 5, 16)).square().sum().backward()
    norm = ours.clip_grad_norm_(layer.parameters(), 1.0)
    assert norm > 1
    torch.testing.assert_close(
        ours.get_total_norm(one.grad for one in layer.parameters()), torch.tensor(1.0)
    )


@pytest.mark.parametrize("size", [1, 15, 16, 17, 100, 5000])
def test_compat_multiplies_by_one_float_as_torch_does(size: int) -> None:
    """Each gradient is multiplied by one float32 and rounded once, never above the limit."""
    generator = torch.Generator().manual_seed(size)
    for max_norm in (0.3, 1e-3, 1e-30):
        parameter = torch.nn.Parameter(torch.zeros(size))
        before = torch.randn(size, generator=generator)
        before[0] = 1e-38  # its product is subnormal
        parameter.grad = before.clone()
        norm = float(ours.clip_grad_norm_(parameter, max_norm))
        factor = min(max_norm / (before.double().norm().item() + 1e-6), 1.0)
        near = torch.tensor(factor, dtype=torch.float32)
        below = torch.nextafter(near, torch.tensor(0.0))
        exact = [(before.double() * one.double()).float() for one in (near, below)]
        assert norm == pytest.approx(before.double().norm().item(), rel=1e-6)
        assert any(torch.equal(parameter.grad, one) for one in exact)
        assert parameter.grad.double().norm() <= max_norm * (1 + 2**-24) + size * 2**-149


def test_compat_multiplies_doubles_by_a_double() -> None:
    parameter = torch.nn.Parameter(torch.zeros(100, dtype=torch.float64))
    parameter.grad = before = torch.linspace(1, 2, 100, dtype=torch.float64)
    before, norm = before.clone(), before.norm().item()
    ours.clip_grad_norm_(parameter, 0.3)
    torch.testing.assert_close(parameter.grad, before * (0.3 / (norm + 1e-6)), rtol=1e-15, atol=0)


def test_gradients_that_come_to_share_memory_are_found_after_others_that_did_not() -> None:
    """The core remembers where buffers lie, and looks again at those that lie elsewhere now."""
    memory = torch.ones(64)
    model = [torch.nn.Parameter(torch.zeros(16)) for _ in range(3)]
    for starts in ((0, 16, 32), (0, 16, 32), (0, 16, 24), (0, 16, 32), (16, 16, 32)):
        grads = [memory[start : start + 16] for start in starts]
        for parameter, grad in zip(model, grads, strict=True):
            parameter.grad = grad
        if starts == (0, 16, 32):
            assert float(ours.clip_grad_norm_(model, 1e9)) == pytest.approx(48**0.5)
            continue
        with pytest.raises(ValueError, match="share memory"):
            _core.clip_gradients(model, 1e9, 2.0, "raise", 0.0)


def test_gradients_are_found_through_what_a_class_puts_before_them() -> None:
    class Odd(torch.nn.Parameter):
        @property
        def grad(self) -> Any:
            return self.shown

    plain, odd = torch.nn.Parameter(torch.zeros(2)), Odd(torch.zeros(2))
    plain.grad, odd.shown = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    empty = torch.nn.Parameter(torch.zeros(2))
    found, clipped = _core.clip_gradients([plain, empty, odd], 1.0, 2.0, "raise", 0.0)
    assert [id(one) for one in found] == [id(plain.grad), id(odd.shown)]
    assert clipped.norm == 5
    torch.testing.assert_close(odd.shown, torch.tensor([0.0, 0.8]))


def test_parameters_are_no_gradients() -> None:
    model = torch.nn.Linear(3, 2)
    before = model.weight.detach().clone()
    for given in (model.parameters(), list(model.parameters()), dict(model.named_parameters())):
        with pytest.raises(TypeError, match=r"p\.grad of each parameter p, or call vegrad\.torch"):
            clipping.clip_by_global_norm_(given, 1e-3)
    with pytest.raises(TypeError, match="not a Parameter that requires one"):
        clipping.GlobalNorm(1e-3).apply_([model.weight])
    assert torch.equal(model.weight, before)
    (made,) = torch.autograd.grad(model.weight.square().sum(), model.weight, create_graph=True)
    assert clipping.clip_by_global_norm_([made], 1e-3).clipped  # no leaf: a gradient with a graph
