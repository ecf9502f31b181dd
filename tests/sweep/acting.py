"""Heads of reinforcement learning, on small networks that grow; returns and advantages are a part of the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweep.attention import Attention, network
from sweep.data import INPUTS, labels, normal, own
from sweep.mup import architecture

ACTIONS = 4
STEPS = normal(8, INPUTS), labels(8, of=ACTIONS), normal(8, seed=4), normal(8, seed=5)
"""Observations, actions, returns, advantages."""
MOVES = normal(8, INPUTS), normal(8, 2, seed=3).tanh(), normal(8, seed=4), normal(8, seed=5)
"""The same with actions of two numbers."""


def body(n: int, inputs: int = INPUTS) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, n), nn.Tanh(), nn.Linear(n, n), nn.Tanh())


@architecture("Schulman et al. 2017, arXiv:1707.06347", STEPS, own)
class PPO(nn.Module):
    """A clipped policy and a value on one body, with a bonus for entropy."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.body, self.policy, self.value = body(n), nn.Linear(n, ACTIONS), nn.Linear(n, 1)

    def forward(self, x: Tensor, action: Tensor, returns: Tensor, advantage: Tensor) -> Tensor:
        h = self.body(x)
        log = self.policy(h).log_softmax(-1)
        ratio = torch.exp(log.gather(1, action[:, None])[:, 0] + 1.4)
        gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        entropy = -(log.exp() * log).sum(-1)
        return -gain.mean() + 0.5 * F.mse_loss(self.value(h)[:, 0], returns) - 0.01 * entropy.mean()


@architecture("Wang et al. 2016, arXiv:1511.06581", STEPS, own)
class DuelingDQN(nn.Module):
    """A value and advantages of mean zero; two networks, of which the target is a copy without a gradient."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.body, self.value, self.advantage = body(n), nn.Linear(n, 1), nn.Linear(n, ACTIONS)

    def quality(self, x: Tensor) -> Tensor:
        h = self.body(x)
        advantage = self.advantage(h)
        return self.value(h) + advantage - advantage.mean(-1, keepdim=True)

    def forward(self, x: Tensor, action: Tensor, reward: Tensor, _: Tensor) -> Tensor:
        with torch.no_grad():
            target = reward + 0.9 * self.quality(x.roll(1, 0)).amax(-1)
        return F.smooth_l1_loss(self.quality(x).gather(1, action[:, None])[:, 0], target)


@architecture("Bellemare et al. 2017, arXiv:1707.06887", STEPS, own)
class CategoricalDQN(nn.Module):
    """A distribution over 11 returns for every action."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.body, self.atoms = body(n), nn.Linear(n, 11 * ACTIONS)

    def forward(self, x: Tensor, action: Tensor, returns: Tensor, _: Tensor) -> Tensor:
        logits = self.atoms(self.body(x)).unflatten(1, (ACTIONS, 11))[torch.arange(len(x)), action]
        place = (returns.clamp(-2, 2) + 2) * 2.5
        low, part = place.floor().long(), place - place.floor()
        target = torch.zeros_like(logits).scatter(1, low[:, None], (1 - part)[:, None])
        return F.cross_entropy(logits, target.scatter_add(1, (low + 1).clamp(max=10)[:, None], part[:, None]))


@architecture("Haarnoja et al. 2018, arXiv:1801.01290", MOVES, own, keep=("temperature",))
class SAC(nn.Module):
    """A squashed Gaussian actor through two critics, the critics themselves, and a learnt temperature."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.actor, self.mean, self.log = body(n), nn.Linear(n, 2), nn.Linear(n, 2)
        self.critics = nn.ModuleList(nn.Sequential(*body(n, INPUTS + 2), nn.Linear(n, 1)) for _ in range(2))
        self.temperature = nn.Parameter(torch.tensor(-1.0))

    def forward(self, x: Tensor, action: Tensor, returns: Tensor, noise: Tensor) -> Tensor:
        h = self.actor(x)
        mean, log = self.mean(h), torch.tanh(self.log(h))
        raw = mean + log.exp() * noise[:, None]
        density = -(log + torch.log(1 - torch.tanh(raw).square() + 1e-4)).sum(-1)
        found = [critic(torch.cat([x, action], -1))[:, 0] for critic in self.critics]
        values = [critic(torch.cat([x, torch.tanh(raw)], -1))[:, 0] for critic in self.critics]
        temperature = self.temperature.exp()
        actor = (temperature.detach() * density - torch.minimum(*values)).mean()
        return sum(F.mse_loss(value, returns) for value in found) + actor - temperature * (density.detach().mean() + 2)


@architecture("Dabney et al. 2018, arXiv:1806.06923", (*STEPS[:3], normal(8, 5).sigmoid()), own)
class QuantileNetwork(nn.Module):
    """A state times the embedding of a quantile, by cosines; Huber's loss of quantiles."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.body, self.quantile, self.hidden, self.readout = (
            body(n),
            nn.Linear(8, n),
            nn.Linear(n, n),
            nn.Linear(n, ACTIONS),
        )

    def forward(self, x: Tensor, action: Tensor, returns: Tensor, level: Tensor) -> Tensor:
        waves = torch.cos(torch.pi * torch.arange(8) * level[..., None])
        h = self.body(x)[:, None] * F.relu(self.quantile(waves))
        value = self.readout(F.relu(self.hidden(h)))[torch.arange(len(x)), :, action]
        error = returns[:, None] - value
        return (
            (level - (error < 0).float()).abs()
            * F.smooth_l1_loss(value, returns[:, None].expand_as(value), reduction="none")
        ).mean()


@architecture("Chen et al. 2021, arXiv:2106.01345", (normal(2, 4, INPUTS), labels(2, 4, of=ACTIONS), normal(2, 4)), own)
class DecisionTransformer(nn.Module):
    """Returns, states and actions are tokens in turn."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.returns, self.states, self.actions, self.times = (
            nn.Linear(1, n),
            nn.Linear(INPUTS, n),
            nn.Embedding(ACTIONS, n),
            nn.Embedding(4, n),
        )
        self.norm, self.attention, self.network, self.last = nn.LayerNorm(n), Attention(n), network(n), nn.LayerNorm(n)
        self.readout = nn.Linear(n, ACTIONS)

    def forward(self, states: Tensor, actions: Tensor, returns: Tensor) -> Tensor:
        tokens = self.returns(returns[..., None]), self.states(states), self.actions(actions)
        x = torch.stack([token + self.times.weight for token in tokens], 2).flatten(1, 2)
        x = x + self.attention(self.norm(x), causal=True)
        x = self.last(x + self.network(x)).unflatten(1, (4, 3))[:, :, 1]
        return F.cross_entropy(self.readout(x).flatten(0, 1), actions.flatten())


@architecture(
    "Hafner et al. 2020, arXiv:1912.01603",
    (normal(2, 4, INPUTS), normal(2, 4, 2)),
    own,
    roles={"latent.weight": "readout"},
)
class WorldModel(nn.Module):
    """A recurrent state with a latent of constant size; it predicts what is seen and what is paid."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.encode, self.latent, self.cell = nn.Linear(INPUTS, n), nn.Linear(n, 6), nn.GRUCell(6 + 2, n)
        self.seen, self.decode, self.reward = nn.Linear(n, n), nn.Linear(n, INPUTS), nn.Linear(n, 1)

    def forward(self, x: Tensor, actions: Tensor) -> Tensor:
        state, total = x.new_zeros(len(x), self.cell.hidden_size), 0
        for t in range(x.shape[1]):
            latent = torch.tanh(self.latent(torch.tanh(self.encode(x[:, t]) + state)))
            state = self.cell(torch.cat([latent, actions[:, t]], -1), state)
            found = self.decode(torch.tanh(self.seen(state)))
            total = total + F.mse_loss(found, x[:, t]) + F.mse_loss(self.reward(state)[:, 0], actions[:, t, 0])
        return total
