"""fuse of recurrent modules: what is refused, and what runs as PyTorch's own."""

import copy
import gc
import warnings
import weakref
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import vegrad.torch as ours  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils.rnn import pack_sequence  # noqa: E402
from vegrad.torch.fused import recurrent  # noqa: E402

from tests.torch.test_fused_recurrent import (  # noqa: E402
    assert_close,
    both,
    each_kind,
    flat,
    results,
    sequences,
    state_of,
    weighed,
)

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def batch(dtype: Any = torch.float64) -> Any:
    return torch.linspace(-1, 1, 60, dtype=dtype).reshape(5, 4, 3)


def mixed() -> Any:
    model = nn.LSTM(3, 5)
    model.bias_hh_l0 = nn.Parameter(model.bias_hh_l0.detach().double())
    return model


def parametrized() -> Any:
    model = nn.LSTM(3, 5)
    nn.utils.parametrizations.weight_norm(model, "weight_hh_l0")
    return model


def in_inference_mode() -> Any:
    with torch.inference_mode():
        return nn.GRU(3, 5)


class Residual(nn.GRU):
    def forward(self, x: Any, hx: Any = None) -> Any:
        out, state = super().forward(x, hx)
        return x + out, state


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: nn.LSTM(3, 5, proj_size=2), "proj_size must be 0, not 2"),
        (lambda: nn.LSTM(3, 5, dtype=torch.bfloat16), "all parameters must be float32, or all"),
        (lambda: nn.GRU(3, 5, device="meta"), "all parameters must be .* on the CPU"),
        (mixed, "all parameters must be float32, or all float64"),
        (parametrized, "weight_ih_l0, .* must be parameters of the module"),
        (in_inference_mode, "must not be made in inference mode"),
        (lambda: Residual(5, 5), r"forward\(\) must be that of nn.Sequential, LSTM, GRU or RNN"),
        (lambda: nn.LSTMCell(3, 5), r"forward\(\) must be that of nn.Sequential, LSTM, GRU or RNN"),
        (lambda: nn.Sequential(nn.LSTM(3, 5)), "layer 0 must be a Linear or the activation of one"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_what_is_not_fused_is_left_as_it_is(make: Any, said: str) -> None:
    module = make()
    with pytest.warns(UserWarning, match=f"not fused: .*{said}"):
        assert ours.fuse(module) is module


def test_direct_is_for_a_sequential() -> None:
    with pytest.raises(ValueError, match=r"direct=True is for an nn\.Sequential, not for LSTM"):
        ours.fuse(nn.LSTM(3, 5), direct=True)


def test_mode_hooks_and_buffers_stay() -> None:
    plain, seen = nn.GRU(3, 5).double().eval(), []
    plain.register_forward_hook(lambda *_: seen.append("hook"))
    plain.register_buffer("mean", torch.zeros(2))
    fused = ours.fuse(plain)
    for one in (fused, copy.deepcopy(fused)):
        assert list(one.state_dict()) == list(plain.state_dict())
        assert not one.training
        one(batch())
    assert seen == ["hook", "hook"]
    assert repr(fused) == "FusedGRU(3, 5)"


@each_kind
def test_where_the_pass_does_not_fit_the_module_runs(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, fused = both(kind, dtype=torch.float32)
    x = batch(torch.float32)
    with monkeypatch.context() as patch:
        patch.setattr(recurrent._Cell, "forward", None)  # it would raise an error
        with torch.autocast("cpu", torch.bfloat16):
            outs = [model(x)[0] for model in (plain, fused)]
        assert outs[0].dtype == outs[1].dtype
        torch.testing.assert_close(*outs)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(fused, x, check_trace=False)
        torch.testing.assert_close(traced(2 * x)[0], plain(2 * x)[0])
    fused.double()
    torch.testing.assert_close(fused(x.double())[0], plain.double()(x.double())[0])


@each_kind
def test_bad_arguments_raise_the_errors_of_the_module(kind: str) -> None:
    plain, fused = both(kind)
    x, good = batch(), state_of(plain, 4)
    good = good[0] if len(good) == 1 else tuple(good)
    bad = state_of(plain, 3)
    bad = bad[0] if len(bad) == 1 else tuple(bad)
    cases: list[tuple[Any, ...]] = [
        (x, bad),
        (x[:, 0], good),
        (x[..., :2],),
        (x[0, 0],),
        (x.float(),),
        (x[:0],),
        (x[:, :0],),
        (x.unsqueeze(0),),
        (x, 3),
        (pack_sequence([x[:, 0]]), good),
    ]
    for case in cases:
        errors = []
        for model in (plain, fused):
            try:
                model(*case)
                errors.append(None)
            except Exception as error:
                errors.append((type(error), str(error).replace("Fused", "")))
        assert errors[0] == errors[1]


@each_kind
def test_weights_of_wrong_shapes_never_reach_the_pass(kind: str) -> None:
    _, fused = both(kind)
    fused.weight_hh_l0 = nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))
    with pytest.raises(RuntimeError):
        fused(batch())


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
@each_kind
def test_second_derivatives_are_an_error(kind: str) -> None:
    """Differentiating a gradient raises, rather than leaving its part of the loss out."""
    plain, fused = both(kind, num_layers=2)
    x = batch().requires_grad_()
    for wanted in (x, fused.weight_ih_l0):
        (slope,) = torch.autograd.grad(weighed(fused(x)), wanted, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivatives"):
            slope.square().sum().backward()
    fused.zero_grad()
    weighed(fused(x)).backward(create_graph=True)
    weighed(plain(x)).backward()
    for got, want in zip(fused.parameters(), plain.parameters(), strict=True):
        assert_close([got.grad], [want.grad])


@each_kind
def test_weights_that_change_between_the_passes_are_an_error(kind: str) -> None:
    _, fused = both(kind)
    for one in (fused.weight_hh_l0, fused.bias_ih_l0):
        loss = weighed(fused(batch()))
        with torch.no_grad():
            one.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@each_kind
def test_what_was_kept_goes_with_the_backward_pass(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss that is still held does not hold what its passes have kept."""

    class Held:
        def __init__(self, kept: Any) -> None:
            self.kept = kept

    seen: list[Any] = []
    forward, backward = recurrent._Cell.forward, recurrent._Cell.backward

    def kept(self: Any, *arguments: Any) -> Any:
        out, kept = forward(self, *arguments)
        held = Held(kept)
        seen.append(weakref.ref(held))
        return out, held

    monkeypatch.setattr(recurrent._Cell, "forward", kept)
    monkeypatch.setattr(
        recurrent._Cell, "backward", lambda self, kept, *rest: backward(self, kept.kept, *rest)
    )
    _, fused = both(kind)
    loss = weighed(fused(batch()))
    loss.backward(retain_graph=True)
    gc.collect()
    assert seen[0]() is not None
    loss.backward()
    gc.collect()
    assert seen[0]() is None
    assert loss.grad_fn is not None


@each_kind
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_and_hooks_of_saved_tensors(kind: str, reentrant: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    found = []
    for model in both(kind, num_layers=2):
        x = batch().requires_grad_()
        for _ in range(2):
            weighed(checkpoint(model, x, use_reentrant=reentrant)).backward()
        with torch.autograd.graph.save_on_cpu():
            loss = weighed(model(x))
        loss.backward()
        found.append([x.grad, *(one.grad for one in model.parameters())])
    assert_close(*found)


@each_kind
def test_frozen_parameters_hooks_and_autograd_grad(kind: str) -> None:
    found = []
    for model in both(kind, num_layers=2):
        model.weight_hh_l0.requires_grad_(False)
        handle = model.weight_ih_l0.register_hook(lambda grad: 3 * grad)
        weighed(model(batch())).backward()
        handle.remove()
        assert model.weight_hh_l0.grad is None
        wanted = [one for one in model.parameters() if one.requires_grad]
        grads = torch.autograd.grad(weighed(model(batch())), wanted)
        found.append([*(one.grad for one in wanted), *grads])
    assert_close(*found)


@each_kind
def test_functional_calls_and_transforms(kind: str) -> None:
    from torch.func import functional_call, grad

    plain, fused = both(kind)
    other = {name: one.detach().sin() for name, one in plain.named_parameters()}
    found = []
    for model in (plain, fused):
        given = {name: one.clone().requires_grad_() for name, one in other.items()}
        weighed(functional_call(model, given, (batch(),))).backward()

        def loss(given: Any, model: Any = model) -> Any:
            return functional_call(model, given, (batch(),))[0].sin().sum()

        transformed = grad(loss)(other)
        found.append([*(one.grad for one in given.values()), *transformed.values()])
        out = model(batch())
        found[-1] += [one.detach() for one in flat(out)]
    assert_close(*found)


@each_kind
def test_inputs_of_other_layouts(kind: str) -> None:
    plain, fused = both(kind)
    x = batch()
    for one in (
        x.expand(5, 4, 3),
        x.flip(0)[::2],
        x.transpose(0, 1),
        torch.complex(x, x).conj().imag,  # with the negative bit
        torch.complex(x[:, :1, :1], x[:, :1, :1]).conj().imag.expand(5, 4, 3),
    ):
        assert_close(results(fused, [one]), results(plain, [one]))


@each_kind
def test_a_diagnosis_of_a_model_with_a_fused_module(kind: str) -> None:
    """It reads the same flow as of the module itself."""

    class Model(nn.Module):
        def __init__(self, rnn: nn.Module) -> None:
            super().__init__()
            self.rnn, self.head = rnn, nn.Linear(5, 2)

        def forward(self, x: Any) -> Any:
            return self.head(self.rnn(x)[0][-1])

    plain, fused = both(kind, dtype=torch.float32)
    x, texts = batch(torch.float32), []
    for module in (plain, fused):
        torch.manual_seed(4)
        model = Model(module)
        texts.append(str(ours.diagnose(model, nn.MSELoss(), x, torch.zeros(4, 2))))
    assert texts[0] == texts[1].replace("Fused", "")


@each_kind
def test_weights_that_are_moved_or_lie_otherwise(kind: str) -> None:
    plain, fused = both(kind)
    moves = (
        lambda one: setattr(one, "data", one.data.clone().mul_(2)),
        lambda one: setattr(one, "data", one.data.t().contiguous().t()),
        lambda one: one.data.mul_(0.5),
        lambda one: setattr(one, "data", one.data.contiguous()),
    )
    for move in moves:
        for model in (plain, fused):
            move(model.weight_hh_l0)
            model.zero_grad()
        assert_close(results(fused, [batch()]), results(plain, [batch()]))
        assert_close(flat(copy.copy(fused)(batch())), flat(plain(batch())))


@each_kind
def test_one_step_one_row_one_unit(kind: str) -> None:
    for sizes, shape in (((3, 1), (1, 1)), ((1, 7), (1, 3)), ((1, 1), (6, 1))):
        plain, fused = both(kind, *sizes, num_layers=2, bidirectional=True)
        x = [torch.randn(*shape, sizes[0], dtype=torch.float64)]
        assert_close(results(fused, x), results(plain, x))
    rows = sequences([1, 1])
    plain, fused = both(kind)
    assert_close(
        results(fused, rows, None, pack_sequence), results(plain, rows, None, pack_sequence)
    )
