"""fuse(nn.LSTM), fuse(nn.GRU) and fuse(nn.RNN), compared with the module that they came from."""

import copy
import pickle
import threading
from collections.abc import Sequence
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import vegrad.torch as ours  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils.rnn import PackedSequence, pack_sequence  # noqa: E402
from vegrad.torch.fused import recurrent  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")

KINDS = {
    "lstm": (nn.LSTM, {}),
    "gru": (nn.GRU, {}),
    "tanh": (nn.RNN, {}),
    "relu": (nn.RNN, {"nonlinearity": "relu"}),
}
FUSED = {nn.LSTM: ours.FusedLSTM, nn.GRU: ours.FusedGRU, nn.RNN: ours.FusedRNN}
each_kind = pytest.mark.parametrize("kind", KINDS)


def both(
    kind: str, inputs: int = 3, hidden: int = 5, dtype: Any = torch.float64, **options: Any
) -> tuple[Any, Any]:
    make, more = KINDS[kind]
    torch.manual_seed(0)
    plain = make(inputs, hidden, **more, **options).to(dtype)
    fused = ours.fuse(copy.deepcopy(plain))
    assert type(fused) is FUSED[make]
    return plain, fused


def sequences(lengths: Sequence[int], inputs: int = 3, dtype: Any = torch.float64) -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, inputs, dtype=dtype, generator=generator) for n in lengths]


def state_of(model: Any, *shape: int, dtype: Any = torch.float64) -> list[Any]:
    """Return a state for each row and layer, or without rows if `shape` is empty."""
    generator = torch.Generator().manual_seed(2)
    count = model.num_layers * (1 + model.bidirectional)
    return [
        torch.randn(count, *shape, model.hidden_size, dtype=dtype, generator=generator)
        for _ in range(1 + isinstance(model, nn.LSTM))
    ]


def flat(found: Any) -> list[Any]:
    """Return the tensors of what a recurrent module has returned."""
    out, states = found
    first = out.data if isinstance(out, PackedSequence) else out
    return [first, *([states] if isinstance(states, torch.Tensor) else states)]


def weighed(found: Any) -> Any:
    """Return a number that depends on all elements of what a module has returned."""
    return sum(
        (one.sin() * torch.linspace(-1, 1, one.numel(), dtype=one.dtype).reshape(one.shape)).sum()
        for one in flat(found)
    )


def results(model: Any, rows: list[Any], state: list[Any] | None = None, packed: Any = None) -> Any:
    """Return outputs, states and all gradients; `packed` makes the argument of the rows."""
    rows = [one.clone().requires_grad_() for one in rows]
    states = [one.clone().requires_grad_() for one in state or []]
    given = () if not states else (tuple(states) if len(states) == 2 else states[0],)
    model.zero_grad()
    found = model(packed(rows) if packed else rows[0], *given)
    weighed(found).backward()
    leaves = [*rows, *states, *model.parameters()]
    return [*(one.detach() for one in flat(found)), *(one.grad for one in leaves)]


def assert_close(got: list[Any], want: list[Any], tolerance: float = 1e-12) -> None:
    """Compare tensors to a tolerance that is relative to the largest element of each."""
    for one, other in zip(got, want, strict=True):
        one, other = one.detach(), other.detach()
        assert one.shape == other.shape
        largest = max(float(other.abs().max()), 1e-3)
        assert float((one - other).abs().max()) <= tolerance * largest


@given(
    kind=st.sampled_from(list(KINDS)),
    layers=st.integers(1, 3),
    bidirectional=st.booleans(),
    batch_first=st.booleans(),
    bias=st.booleans(),
    with_state=st.booleans(),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 19)),
    lengths=st.lists(st.integers(1, 8), min_size=1, max_size=5),
    form=st.sampled_from(["batch", "single", "packed", "sorted"]),
)
def test_values_states_and_gradients(
    kind: str,
    layers: int,
    bidirectional: bool,
    batch_first: bool,
    bias: bool,
    with_state: bool,
    sizes: tuple[int, int],
    lengths: list[int],
    form: str,
) -> None:
    options = {"num_layers": layers, "bidirectional": bidirectional, "bias": bias}
    plain, fused = both(kind, *sizes, batch_first=batch_first, **options)
    steps, rows, packed = max(lengths), (len(lengths),), None
    x = sequences([steps] * len(lengths), sizes[0])
    if form == "batch":
        x = [torch.stack(x, 0 if batch_first else 1)]
    elif form == "single":
        x, rows = x[:1], ()
    else:
        in_order = form == "sorted"
        x = sequences(sorted(lengths, reverse=True) if in_order else lengths, sizes[0])

        def packed(rows: list[Any]) -> Any:
            return pack_sequence(rows, enforce_sorted=in_order)

    state = state_of(plain, *rows) if with_state else None
    assert_close(results(fused, x, state, packed), results(plain, x, state, packed))
    given = packed(x) if packed else x[0]
    with torch.no_grad():
        assert_close(flat(fused(given)), flat(plain(given)))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return a list that gets, for each fused forward pass, True if it keeps anything."""
    found: list[bool] = []
    forward = recurrent._Cell.forward

    def counted(self: Any, order: Any, x: Any, states: Any, keep: bool) -> Any:
        found.append(keep)
        out, kept = forward(self, order, x, states, keep)
        assert (kept is not None) == keep
        return out, kept

    monkeypatch.setattr(recurrent._Cell, "forward", counted)
    return found


@each_kind
def test_what_runs_fused(kind: str, passes: list[bool]) -> None:
    """Passes run for all that torch takes, and keep something only if gradients are wanted."""
    _, fused = both(kind, num_layers=2, bidirectional=True)
    x = torch.randn(6, 4, 3, dtype=torch.float64)
    packed = pack_sequence(sequences([2, 5, 1]), enforce_sorted=False)
    for one in (x, x[:, 0], x[::2], x.transpose(0, 1), packed):
        fused(one)
        assert passes == [True] * 4
        passes.clear()
    with torch.no_grad():
        fused(x)
    with torch.inference_mode():
        fused(x)
    fused.requires_grad_(False)
    assert not fused(x)[0].requires_grad
    assert passes == [False] * 12
    passes.clear()
    assert fused(x.requires_grad_())[0].requires_grad
    assert passes == [True] * 4


@each_kind
def test_packed_sequences_come_back_as_they_were(kind: str) -> None:
    for in_order, lengths in ((False, [2, 5, 5, 1]), (True, [5, 5, 2, 1])):
        packed = pack_sequence(sequences(lengths), enforce_sorted=in_order)
        plain, fused = (model(packed)[0] for model in both(kind))
        assert torch.equal(fused.batch_sizes, plain.batch_sizes)
        for name in ("sorted_indices", "unsorted_indices"):
            one, other = getattr(fused, name), getattr(plain, name)
            assert one is other is None if in_order else torch.equal(one, other)


@each_kind
def test_parameters_are_the_same_objects(kind: str) -> None:
    plain, _ = both(kind, num_layers=2)
    fused = ours.fuse(plain)
    assert isinstance(fused, type(plain))
    assert fused.state_dict().keys() == plain.state_dict().keys()
    assert all(a is b for a, b in zip(plain.parameters(), fused.parameters(), strict=True))
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    with torch.no_grad():
        plain.weight_hh_l1.mul_(2)
    assert_close(flat(fused(x)), flat(plain(x)))
    fused.weight_hh_l1 = nn.Parameter(torch.zeros_like(fused.weight_hh_l1))
    assert float(plain.weight_hh_l1.detach().abs().max()) > 0
    plain.load_state_dict(fused.state_dict())
    assert_close(flat(fused(x)), flat(plain(x)))


@each_kind
def test_only_some_outputs_are_used(kind: str) -> None:
    """A loss of the output alone, of the last state alone, of one step, gets its gradient."""
    x = sequences([6])[0].unsqueeze(1).expand(6, 2, 3)
    for pick in (lambda o, s: o[-1], lambda o, s: s, lambda o, s: o[2], lambda o, s: s * o[0]):
        grads = []
        for model in both(kind, num_layers=2):
            out, state = model(x)
            pick(out, state if isinstance(state, torch.Tensor) else state[-1]).sum().backward()
            grads.append([one.grad for one in model.parameters()])
        assert_close(*grads)


@each_kind
def test_dropout(kind: str) -> None:
    """Masks are PyTorch's own between layers, and none in evaluation mode."""
    plain, fused = both(kind, num_layers=3, dropout=0.4)
    x, found = torch.randn(6, 4, 3, dtype=torch.float64), []
    for model in (plain, fused):
        torch.manual_seed(3)
        found.append(results(model, [x]))
    assert_close(*found)
    assert not torch.equal(fused(x)[0], fused(x)[0])
    assert_close(flat(fused.eval()(x)), flat(plain.eval()(x)))


@each_kind
def test_float32(kind: str) -> None:
    plain, fused = both(kind, 24, 40, torch.float32, num_layers=2, bidirectional=True)
    x = [torch.randn(20, 9, 24)]
    state = state_of(plain, 9, dtype=torch.float32)
    assert_close(results(fused, x, state), results(plain, x, state), 2e-4)


@each_kind
def test_gradients_are_double_checked(kind: str) -> None:
    """Gradients agree with finite differences."""
    _, fused = both(kind, 2, 3, bidirectional=True)
    x = torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: flat(fused(x)), (x, *fused.parameters()))


@each_kind
def test_training_is_the_same(kind: str) -> None:
    ends = []
    for model in both(kind, num_layers=2):
        optimizer = ours.AdamW(model.parameters(), 0.01)
        state = None
        for step in range(40):
            x = torch.linspace(-1, 1, 42, dtype=torch.float64).reshape(7, 2, 3).roll(step, 0)
            optimizer.zero_grad()
            out, state = model(x, state)
            out.square().mean().backward()
            optimizer.step()
            parts = state if isinstance(state, tuple) else (state,)
            parts = tuple(one.detach() for one in parts)
            state = parts if isinstance(state, tuple) else parts[0]
        ends.append(nn.utils.parameters_to_vector(model.parameters()))
    torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-11)


@each_kind
def test_passes_that_cross(kind: str) -> None:
    """Run two forward passes before their backward passes, one of them twice; gradients add up."""
    grads = []
    for model in both(kind, num_layers=2):
        one, two = sequences([6, 4])
        first, second = weighed(model(one)), weighed(model(two))
        first.backward(retain_graph=True)
        second.backward()
        kept = [p.grad.clone() for p in model.parameters()]
        first.backward()
        for old, p in zip(kept, model.parameters(), strict=True):
            assert not torch.equal(old, p.grad)
        grads.append([p.grad for p in model.parameters()])
        with pytest.raises(RuntimeError, match="a second time"):
            first.backward()
    assert_close(*grads)


@each_kind
def test_several_threads(kind: str) -> None:
    """Threads run forward and backward passes of one module at once."""
    _, fused = both(kind, 16, 32)
    inputs = sequences([30 + n for n in range(8)], 16)
    want = [torch.autograd.grad(weighed(fused(x)), list(fused.parameters())) for x in inputs]
    got: list[Any] = [None] * len(inputs)

    def work(place: int) -> None:
        for _ in range(5):
            loss = weighed(fused(inputs[place]))
            got[place] = torch.autograd.grad(loss, list(fused.parameters()))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(inputs))]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    for one, other in zip(got, want, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@each_kind
def test_copies_and_pickles(kind: str) -> None:
    plain, fused = both(kind, num_layers=2)
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    want = flat(fused(x))
    for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), ours.fuse(fused)):
        assert type(other) is type(fused)
        assert_close(flat(other(x)), want)
    twin = copy.deepcopy(fused)
    with torch.no_grad():
        twin.weight_hh_l0.zero_()
    assert_close(flat(fused(x)), want)
    assert_close(flat(fused(x)), flat(plain(x)))
