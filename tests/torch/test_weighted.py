"""Monitor of losses whose size says nothing, of rates on their way up, and of looked up rows."""

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.distributions import Categorical  # noqa: E402
from vegrad.flow.finding import Finding  # noqa: E402
from vegrad.torch import Monitor  # noqa: E402
from vegrad.torch.monitor.alarms import Alarms  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore::vegrad.torch.FindingWarning"),  # asked of the report
]


def reinforce(seed: int, episodes: int = 150, turns: int = 15) -> Monitor:
    """Train by rewards, of which each episode's mean is taken."""
    torch.manual_seed(seed)
    policy = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 2))
    monitor, optimizer = Monitor(policy), torch.optim.Adam(policy.parameters(), 0.01)
    for _ in range(episodes):
        seen = torch.randn(turns, 4)
        choice = Categorical(logits=policy(seen))
        action = choice.sample()
        reward = (action == (seen[:, 0] > 0)).float().flip(0).cumsum(0).flip(0)
        reward = (reward - reward.mean()) / reward.std()
        optimizer.zero_grad()
        (-choice.log_prob(action) * reward).sum().backward()
        optimizer.step()
    return monitor


@pytest.mark.parametrize("seed", [1, 6])  # of which one leapt, and one promised much
def test_a_loss_that_goes_back_and_forth_about_0_blames_no_step(seed: int) -> None:
    report = reinforce(seed).report()
    assert not report.findings, str(report)


@pytest.mark.parametrize(("growth", "told"), [(1.1, []), (1.0, ["learning-rate-low"])])
def test_a_rate_on_its_way_up_is_not_low(growth: float, told: list[str]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    monitor, optimizer = Monitor(model), torch.optim.SGD(model.parameters(), 1e-6)
    for _ in range(60):
        x = torch.randn(32, 8)
        optimizer.zero_grad()
        (model(x) - x[:, :1]).square().mean().backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] *= growth
    assert [one.cause for one in monitor.report().findings] == told


def test_steps_that_have_thrown_the_weights_are_not_called_short_too() -> None:
    """Beside the weights that they have made, all later ones are."""
    told: list[str] = []
    alarms = Alarms(lambda one: told.append(one.cause), ())
    for step, cause in enumerate(("learning-rate-high", "learning-rate-low")):
        one = Finding(kind="stalled", severity="warning", cause=cause, advises="")
        alarms.tell([one], step)
    assert told == ["learning-rate-high"]


class Speaker(nn.Module):
    """Takes a sequence's tokens one after another, of which the last are all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.cell = nn.Embedding(8, 16), nn.GRUCell(16, 16)
        self.head = nn.Linear(16, 8)

    def forward(self, tokens: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Return logits for the token that follows each."""
        made = []
        for token in tokens.T:
            state = self.cell(self.table(token), state)
            made.append(self.head(state))
        return torch.stack(made, 1)


def test_rows_that_look_up_the_same_have_not_collapsed() -> None:
    torch.manual_seed(0)
    model = Speaker()
    monitor, optimizer = Monitor(model), torch.optim.SGD(model.parameters(), 0.05)
    for step in range(60):
        tokens = torch.randint(1, 8, (16, 6))
        tokens[:, -1] *= step < 5  # the end, which most sequences come to before it
        optimizer.zero_grad()
        out = model(tokens[:, :-1] if step < 5 else tokens, torch.randn(16, 16))
        target = torch.randint(1, 8, out.shape[:2])
        nn.functional.cross_entropy(out.flatten(0, 1), target.flatten()).backward()
        optimizer.step()
    assert "collapse" not in {one.cause for one in monitor.report().findings}
