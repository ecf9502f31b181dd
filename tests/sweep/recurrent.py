"""Recurrent and convolutional models of sequences. The size of a state and of a head are constants; heads grow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sweep.data import TOKENS, VOCABULARY, classify
from sweep.mup import architecture

HEAD = 16


class Text(nn.Module):
    """Embedding, one residual mixer of the sequence, a gated network, a readout."""

    def __init__(self, n: int, mixer: nn.Module) -> None:
        super().__init__()
        self.embedding, self.mixer = nn.Embedding(VOCABULARY, n), mixer
        self.norm, self.norm2, self.last = nn.RMSNorm(n), nn.RMSNorm(n), nn.RMSNorm(n)
        self.up, self.down = nn.Linear(n, 2 * n, bias=False), nn.Linear(2 * n, n, bias=False)
        self.readout = nn.Linear(n, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = x + self.mixer(self.norm(x))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.readout(self.last(x))


def projections(n: int, count: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(n, n, bias=False) for _ in range(count))


def heads(x: Tensor) -> Tensor:
    """(batch, time, n) -> (batch, heads, time, size of a head)."""
    return x.unflatten(-1, (-1, HEAD)).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(-2)


def text(source: str, **choices: Any) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Enter a mixer under its own name, inside of a `Text`; its parameters are those of `mixer`."""

    def enter(mixer: type[nn.Module]) -> type[nn.Module]:
        parts = {"__init__": lambda self, n: Text.__init__(self, n, mixer(n)), "__module__": mixer.__module__}
        architecture(source, TOKENS, classify, **choices)(type(mixer.__name__, (Text,), parts))
        return mixer

    return enter


@text("Poli et al. 2023, arXiv:2302.10866")
class Hyena(nn.Module):
    """Order 2: short convolutions, gates, and long convolutions whose filters a small network gives."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(n, 3 * n, bias=False), nn.Linear(n, n, bias=False)
        self.short = nn.Conv1d(3 * n, 3 * n, 3, padding=2, groups=3 * n, bias=False)
        self.filter1, self.filter2 = nn.Linear(5, 16), nn.Linear(16, n)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        v, a, b = self.short(self.into(x).transpose(1, 2))[..., :length].chunk(3, 1)
        t = torch.arange(length) / length
        positions = torch.stack([t, *(f(6.28 * k * t) for k in (1, 2) for f in (torch.sin, torch.cos))], -1)
        kernel = self.filter2(torch.sin(self.filter1(positions))).T * torch.exp(-2 * t)
        spectrum = torch.fft.rfft(kernel, 2 * length) * torch.fft.rfft(v * a, 2 * length)
        return self.out((torch.fft.irfft(spectrum, 2 * length)[..., :length] * b).transpose(1, 2))


@text("Sun et al. 2023, arXiv:2307.08621")
class RetNet(nn.Module):
    """Retention in its parallel form, a group norm per head, a swish gate."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.gate, self.out = projections(n, 5)
        self.norm = nn.GroupNorm(n // HEAD, n)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads(layer(x)) for layer in (self.q, self.k, self.v))
        t = torch.arange(x.shape[1])
        decay = 1 - 2.0 ** (-5 - torch.linspace(0, 3, q.shape[1]))
        mask = (decay[:, None, None] ** (t[:, None] - t)).tril()
        y = joined((q @ k.mT * HEAD**-0.5 * mask) @ v)
        y = self.norm(y.flatten(0, 1)).view_as(y)
        return self.out(F.silu(self.gate(x)) * y)


@text(
    "Gu & Dao 2023, arXiv:2312.00752",
    axes={"mixer.log_a": (None, 0)},
    roles={"mixer.log_a": "vector", "mixer.bcd.weight": "narrow"},
    keep=("mixer.log_a", "mixer.step.bias"),
)
class Mamba(nn.Module):
    """A selective state space: the step's rank and the state are constants."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(n, 2 * n, bias=False), nn.Linear(n, n, bias=False)
        self.conv = nn.Conv1d(n, n, 4, padding=3, groups=n)
        self.bcd, self.step = nn.Linear(n, 4 + 2 * 8, bias=False), nn.Linear(4, n)
        nn.init.constant_(self.step.bias, -2.0)
        self.log_a = nn.Parameter(torch.arange(1.0, 9).log().repeat(n, 1))
        self.skip = nn.Parameter(torch.ones(n))

    def forward(self, x: Tensor) -> Tensor:
        x, z = self.into(x).chunk(2, -1)
        x = F.silu(self.conv(x.mT)[..., : x.shape[1]].mT)
        low, b, c = self.bcd(x).split([4, 8, 8], -1)
        step = F.softplus(self.step(low))
        decay = torch.exp(-step[..., None] * self.log_a.exp())
        drive = (step * x)[..., None] * b[..., None, :]
        state, outputs = torch.zeros_like(drive[:, 0]), []
        for t in range(x.shape[1]):
            state = decay[:, t] * state + drive[:, t]
            outputs.append((state * c[:, t, None]).sum(-1))
        return self.out((torch.stack(outputs, 1) + self.skip * x) * F.silu(z))


@text("Yang et al. 2024, arXiv:2312.06635", roles={"mixer.low.weight": "narrow"})
class GatedLinearAttention(nn.Module):
    """Keys decay by a gate of low rank; the recurrent form."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.gate, self.out = projections(n, 5)
        self.low, self.high, self.norm = nn.Linear(n, 4, bias=False), nn.Linear(4, n), nn.RMSNorm(HEAD)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads(layer(x)) for layer in (self.q, self.k, self.v))
        decay = heads(torch.sigmoid(self.high(self.low(x))) ** (1 / 16))
        state, outputs = x.new_zeros(*q.shape[:2], HEAD, HEAD), []
        for t in range(x.shape[1]):
            state = decay[:, :, t, :, None] * state + k[:, :, t, :, None] * v[:, :, t, None]
            outputs.append((q[:, :, t, None] @ state)[..., 0, :] * HEAD**-0.5)
        return self.out(joined(self.norm(torch.stack(outputs, 2))) * F.silu(self.gate(x)))


@text("Yang et al. 2024, arXiv:2406.06484", roles={"mixer.beta.weight": "hidden"})
class DeltaNet(nn.Module):
    """The delta rule, with keys of norm 1; a rate per head, whose number grows."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = projections(n, 4)
        self.beta, self.norm = nn.Linear(n, n // HEAD, bias=False), nn.RMSNorm(HEAD)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads(layer(x)) for layer in (self.q, self.k, self.v))
        q, k = F.normalize(F.silu(q), dim=-1), F.normalize(F.silu(k), dim=-1)
        beta = torch.sigmoid(self.beta(x)).mT[..., None]
        state, outputs = x.new_zeros(*q.shape[:2], HEAD, HEAD), []
        for t in range(x.shape[1]):
            error = v[:, :, t] - (k[:, :, t, None] @ state)[..., 0, :]
            state = state + k[:, :, t, :, None] * (beta[:, :, t] * error)[..., None, :]
            outputs.append((q[:, :, t, None] @ state)[..., 0, :])
        return self.out(joined(self.norm(torch.stack(outputs, 2))))


@text("Peng et al. 2023, arXiv:2305.13048")
class RWKV(nn.Module):
    """Version 4: token shift, receptance, keys that decay per channel."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.r, self.k, self.v, self.out = projections(n, 4)
        self.mix = nn.Parameter(torch.full((n,), 0.5))
        self.decay, self.bonus = nn.Parameter(torch.linspace(-3, 1, n)), nn.Parameter(torch.full((n,), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.lerp(F.pad(x, (0, 0, 1, -1)), x, self.mix)
        k, v, decay = self.k(x).exp(), self.v(x), torch.exp(-self.decay.exp())
        numerator = denominator = torch.zeros_like(k[:, 0])
        outputs = []
        for t in range(x.shape[1]):
            now = self.bonus.exp() * k[:, t]
            outputs.append((numerator + now * v[:, t]) / (denominator + now))
            numerator, denominator = decay * numerator + k[:, t] * v[:, t], decay * denominator + k[:, t]
        return self.out(torch.sigmoid(self.r(x)) * torch.stack(outputs, 1))


@text("Beck et al. 2024, arXiv:2405.04517")
class XLSTM(nn.Module):
    """mLSTM in its parallel form: exponential gates per head, stabilised."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o, self.out = projections(n, 5)
        self.i, self.f, self.norm = nn.Linear(n, n // HEAD), nn.Linear(n, n // HEAD), nn.GroupNorm(n // HEAD, n)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads(layer(x)) for layer in (self.q, self.k, self.v))
        forget = F.logsigmoid(self.f(x) + 2).mT.cumsum(-1)
        log = forget[..., :, None] - forget[..., None, :] + self.i(x).mT[..., None, :]
        log = log.masked_fill(torch.ones_like(log).triu(1).bool(), -1e4)
        largest = log.amax(-1, keepdim=True)
        scores = q @ k.mT * HEAD**-0.5 * torch.exp(log - largest)
        y = joined(scores @ v / torch.maximum(scores.sum(-1, keepdim=True).abs(), torch.exp(-largest)))
        return self.out(torch.sigmoid(self.o(x)) * self.norm(y.flatten(0, 1)).view_as(y))


@text("De et al. 2024, arXiv:2402.19427", keep=("mixer.decay",))
class Griffin(nn.Module):
    """The real-gated linear recurrent unit behind a short convolution."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.x, self.gate, self.r, self.i, self.out = projections(n, 5)
        self.conv, self.decay = nn.Conv1d(n, n, 4, padding=3, groups=n), nn.Parameter(torch.linspace(1, 4, n))

    def forward(self, u: Tensor) -> Tensor:
        x = self.conv(self.x(u).mT)[..., : u.shape[1]].mT
        log = -F.softplus(-self.decay) * 8 * torch.sigmoid(self.r(x))
        drive = torch.sqrt(1 - torch.exp(2 * log) + 1e-6) * torch.sigmoid(self.i(x)) * x
        state, outputs = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            state = log[:, t].exp() * state + drive[:, t]
            outputs.append(state)
        return self.out(F.gelu(self.gate(u)) * torch.stack(outputs, 1))


@text("Feng et al. 2024, arXiv:2410.01201", optimizer="sgd", lr=0.05)
class MinGRU(nn.Module):
    """A GRU whose gates do not look at the state."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.z, self.h, self.out = projections(n, 3)

    def forward(self, x: Tensor) -> Tensor:
        z, h = torch.sigmoid(self.z(x)), self.h(x)
        state, outputs = torch.zeros_like(h[:, 0]), []
        for t in range(x.shape[1]):
            state = torch.lerp(state, h[:, t], z[:, t])
            outputs.append(state)
        return self.out(torch.stack(outputs, 1))


@text(
    "Gu et al. 2022, arXiv:2206.11893", axes={"mixer.[bc]": (None, 0), "mixer.log_*": (None, 0)}, keep=("mixer.*log*",)
)
class S4D(nn.Module):
    """A diagonal state space per channel, as a convolution with its kernel."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.log_a, self.log_step = nn.Parameter(torch.zeros(n, 4)), nn.Parameter(torch.linspace(-3, -1, n)[:, None])
        self.c, self.skip, self.out = nn.Parameter(torch.randn(n, 4)), nn.Parameter(torch.ones(n)), nn.Linear(n, 2 * n)

    def forward(self, x: Tensor) -> Tensor:
        length, frequency = x.shape[1], 3.14 * torch.arange(4)
        rate = torch.complex(-0.5 * self.log_a.exp(), frequency.expand_as(self.log_a)) * self.log_step.exp()
        powers = torch.exp(rate[..., None] * torch.arange(length))
        kernel = 2 * (self.c[..., None] * ((torch.exp(rate) - 1) / rate)[..., None] * powers).real.sum(1)
        spectrum = torch.fft.rfft(kernel, 2 * length) * torch.fft.rfft(x.mT, 2 * length)
        y = torch.fft.irfft(spectrum, 2 * length)[..., :length].mT
        return F.glu(self.out(F.gelu(y + self.skip * x)), -1)


@text("Hochreiter & Schmidhuber 1997")
class LSTM(nn.Module):
    """torch's own cells, in two layers."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.cell = nn.LSTM(n, n, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)[0]


@text("van den Oord et al. 2016, arXiv:1609.03499")
class WaveNet(nn.Module):
    """Dilated causal convolutions with gated units, and a sum of skips."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.gates = nn.ModuleList(nn.Conv1d(n, 2 * n, 2, dilation=2**i) for i in range(2))
        self.residuals, self.skips = (nn.ModuleList(nn.Conv1d(n, n, 1) for _ in range(2)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x, total = x.mT, 0
        for i, (gate, residual, skip) in enumerate(zip(self.gates, self.residuals, self.skips, strict=True)):
            a, b = gate(F.pad(x, (2**i, 0))).chunk(2, 1)
            y = torch.tanh(a) * torch.sigmoid(b)
            x, total = x + residual(y), total + skip(y)
        return F.relu(total).mT
