"""Parameters on which the loss does not depend: their gradients are rounding error, however many numbers they sum."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam

from coordcheck import Report, diagnose
from coordcheck.analysis.verdicts import Verdict

CLASSES, EXAMPLES = 10, 8
GENERATOR = torch.Generator().manual_seed(0)
IMAGES, SIGNALS = (torch.randn(EXAMPLES, 3, *size, generator=GENERATOR) for size in ((16, 16), (256,)))
ROWS, TOKENS = (torch.randn(EXAMPLES, *size, generator=GENERATOR) for size in ((32,), (64, 32)))
TARGETS = torch.randint(CLASSES, (EXAMPLES,), generator=GENERATOR)


class Shift(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Attention(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(n, n) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.q(x) @ self.k(x).mT / x.shape[-1]
        return x + self.o(logits.softmax(-1) @ self.v(x))


class Residual(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(n, n, 3, padding=1), nn.Conv2d(n, n, 3, padding=1)
        self.norm, self.last = nn.BatchNorm2d(n), nn.BatchNorm2d(n)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.b(F.relu(self.norm(self.a(x)))))


def mean_of_positions() -> nn.Module:
    return Function(lambda x: x.flatten(2).mean(2))


def sum_of_tokens() -> nn.Module:
    return Function(lambda x: x.mean(1))


def over_all() -> nn.Module:
    return Function(lambda x: F.layer_norm(x, x.shape[1:]))


def conv(n: int, norm: nn.Module) -> list[nn.Module]:
    return [nn.Conv2d(3, n, 3), norm, nn.ReLU(), mean_of_positions()]


BESIDE_THE_LOSS = {
    "a convolution before BatchNorm": (lambda n: conv(n, nn.BatchNorm2d(n)), IMAGES, {"0.bias"}),
    "one of signals": (lambda n: [nn.Conv1d(3, n, 3), nn.BatchNorm1d(n), mean_of_positions()], SIGNALS, {"0.bias"}),
    "a transposed one": (
        lambda n: [nn.ConvTranspose2d(3, n, 2, 2), nn.BatchNorm2d(n), mean_of_positions()],
        IMAGES,
        {"0.bias"},
    ),
    "a residual net": (
        lambda n: [nn.Conv2d(3, n, 3), nn.BatchNorm2d(n), Residual(n), mean_of_positions()],
        IMAGES,
        {"0.bias", "2.a.bias", "2.b.bias"},
    ),
    "before InstanceNorm": (lambda n: conv(n, nn.InstanceNorm2d(n)), IMAGES, {"0.bias"}),
    "a matrix before BatchNorm": (lambda n: [nn.Linear(32, n), nn.BatchNorm1d(n), nn.Tanh()], ROWS, {"0.bias"}),
    "a number before a norm over all": (
        lambda n: [nn.Conv2d(3, n, 3), Shift(1), over_all(), nn.ReLU(), mean_of_positions()],
        IMAGES,
        {"1.shift"},
    ),
    "a shift of each token before LayerNorm": (
        lambda n: [nn.Linear(32, n), Shift(64, 1), nn.LayerNorm(n), nn.ReLU(), sum_of_tokens()],
        TOKENS,
        {"1.shift"},
    ),
    "the keys of an attention": (
        lambda n: [nn.Linear(32, n), Attention(n), sum_of_tokens()],
        TOKENS,
        {"1.k.bias"},
    ),
}
SEEN = {
    "a convolution before groups of channels": (lambda n: conv(n, nn.GroupNorm(4, n)), IMAGES),
    "after BatchNorm": (
        lambda n: [nn.Conv2d(3, n, 3, bias=False), nn.BatchNorm2d(n, affine=False), Shift(n, 1, 1), nn.ReLU()],
        IMAGES,
    ),
    "before statistics that are fixed": (lambda n: conv(n, nn.BatchNorm2d(n).eval()), IMAGES),
    "no norm": (lambda n: [*conv(n, nn.Identity())[:3], nn.Conv2d(n, n, 3), nn.Tanh()], IMAGES),
    "a matrix before LayerNorm": (lambda n: [nn.Linear(32, n), nn.LayerNorm(n), nn.ReLU()], ROWS),
}


def diagnosed(parts: Callable[[int], list[nn.Module]], x: Tensor, kind: type[Adam] | type[SGD] = Adam) -> Report:
    def build(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        made = parts(width)
        pooled = [mean_of_positions()] if x.dim() == 4 and not isinstance(made[-1], Function) else []
        model = nn.Sequential(*made, *pooled, nn.Linear(width, CLASSES), Shift(1))
        return model, kind(model.parameters(), lr=1e-3)

    return diagnose(build, (x, TARGETS), loss=F.cross_entropy, widths=(8, 16, 32), seeds=1)


def not_visible(report: Report) -> set[str]:
    rows = report.parameters
    return set(rows.loc[rows["verdict"] == Verdict.NOT_VISIBLE.value, "layer"])


@pytest.mark.parametrize("kind", [Adam, SGD])
@pytest.mark.parametrize("name", BESIDE_THE_LOSS)
def test_what_the_loss_does_not_depend_on_is_not_visible(name, kind):
    parts, x, names = BESIDE_THE_LOSS[name]
    report = diagnosed(parts, x, kind)
    last = report.records[0].parameters[-1].name  # one number that is added to all logits
    assert not_visible(report) == names | {last}
    assert not [note for note in report.notes if "of degree" in note]


@pytest.mark.parametrize("kind", [Adam, SGD])
@pytest.mark.parametrize("name", SEEN)
def test_what_it_depends_on_is_visible(name, kind):
    parts, x = SEEN[name]
    assert {one.rpartition(".")[2] for one in not_visible(diagnosed(parts, x, kind))} == {"shift"}
