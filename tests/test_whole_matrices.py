"""Optimizers that look at a whole matrix: what they do depends on the number of examples, and no one norm tells it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

import coordcheck
from coordcheck.analysis.logs import Exponent
from coordcheck.analysis.spectra import agreeing

GRID = (32, 64, 128)
IN, CLASSES, EXAMPLES, VOCABULARY = 8, 5, 256, 128
Update = Callable[[Tensor, dict[str, Any]], Tensor]


class Own(Optimizer):
    """p -= lr * update(gradient, state); signs where a group has no update of its own."""

    def __init__(self, groups: Any) -> None:
        super().__init__(groups, {"lr": 1e-2, "update": None})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                update = group["update"]
                p -= group["lr"] * (update(p.grad, self.state[p]) if update else p.grad.sign())


def filled(gradient: Tensor, state: dict[str, Any]) -> Tensor:
    """Dion: a power iteration of rank n / 4, orthogonal to single precision, whose columns are brought to one length.

    Of fewer examples than its rank, the columns that are left are parallel to the others.
    """
    rank = max(gradient.shape) // 4
    if "right" not in state:
        drawn = torch.randn(gradient.shape[1], rank, generator=torch.Generator().manual_seed(0))
        state["right"] = drawn.to(gradient)
    left = torch.linalg.qr((gradient @ state["right"]).float())[0].to(gradient)
    state["right"] = F.normalize(gradient.T @ left, dim=0)
    return left @ state["right"].T


def orthonormal(gradient: Tensor, state: dict[str, Any]) -> Tensor:
    """Muon: all singular values that are not rounding are 1."""
    left, sizes, right = torch.linalg.svd(gradient, full_matrices=False)
    return left @ ((sizes > 1e-5 * sizes[0]).to(sizes)[:, None] * right)


def turned_signs(gradient: Tensor, state: dict[str, Any]) -> Tensor:
    """Conda: signs of the gradient in the basis of its left singular vectors; as large as signs, and not aligned."""
    left = torch.linalg.svd(gradient, full_matrices=False)[0]
    return left @ (left.T @ gradient).sign()


def row_normed(gradient: Tensor, state: dict[str, Any]) -> Tensor:
    """Rows of the length of signs."""
    return F.normalize(gradient, dim=1) * gradient.shape[1] ** 0.5


class Net(nn.Module):
    def __init__(self, width: int, table: bool) -> None:
        super().__init__()
        self.first = nn.Embedding(VOCABULARY, width) if table else nn.Linear(IN, width, bias=False)
        self.hidden, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, CLASSES, bias=False)
        nn.init.normal_(self.hidden.weight, std=width**-0.5)
        nn.init.normal_(self.out.weight, std=8 / width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.hidden(torch.tanh(self.first(x)))))


def few(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of a probe; of a whole batch it is refused."""
    if len(batch[1]) == EXAMPLES:
        raise MemoryError("too many examples")
    return F.cross_entropy(model(batch[0]), batch[1])


def diagnosed(
    name: str, update: Update, power: float, *, whole: bool = False, loss: Any = F.cross_entropy
) -> coordcheck.Report:
    """With signs in µP, but for one matrix: its own update at a learning rate of width ** power."""
    generator = torch.Generator().manual_seed(1)
    table = name == "first.weight"
    x = (
        torch.randint(VOCABULARY, (EXAMPLES,), generator=generator)
        if table
        else torch.randn(EXAMPLES, IN, generator=generator)
    )
    batch = x, torch.randint(CLASSES, (EXAMPLES,), generator=generator)

    def build(width: int) -> tuple[nn.Module, Optimizer]:
        model, m = Net(width, table), width / GRID[0]
        rates = {"first.weight": 1e-3, "hidden.weight": 1e-3 / m, "out.weight": 1e-3 / m}
        groups = [{"params": [p], "lr": rates[n]} for n, p in model.named_parameters() if n != name]
        own = {"params": [dict(model.named_parameters())[name]], "lr": 1e-2 * m**power, "update": update}
        return model, Own([*groups, own])

    probe = batch if whole else "auto"
    return coordcheck.diagnose(build, batch, loss=loss, widths=GRID, seeds=2, probe=probe)


def culprits(report: coordcheck.Report) -> dict[str, tuple[str, float]]:
    return {row.parameter: (row.cause, row.lr_exponent) for row in report.culprits.itertuples()}


HIDDEN, TABLE = "hidden.weight", "first.weight"
MEMBERS = {
    "columns filled": (HIDDEN, filled, 0.0, None),
    "columns filled, too fast": (HIDDEN, filled, 1.0, -1.0),  # on the probe, 1.5
    "columns filled, too slow": (HIDDEN, filled, -1.0, 1.0),
    "turned signs, too fast": (HIDDEN, turned_signs, 0.0, -0.5),  # on the probe, 1: rounding errors fill their rank
    "orthonormal": (HIDDEN, orthonormal, 0.0, None),
    "orthonormal, too slow": (HIDDEN, orthonormal, -1.0, 1.0),
    "orthonormal table": (TABLE, orthonormal, 0.0, None),  # as many tokens as coordinates; on the probe, few
    "orthonormal table, too fast": (TABLE, orthonormal, 1.0, -1.0),
    "rows": (HIDDEN, row_normed, -1.0, None),
    "rows, too fast": (HIDDEN, row_normed, 0.0, -1.0),
}


@pytest.mark.parametrize(("name", "update", "power", "mends"), MEMBERS.values(), ids=MEMBERS)
def test_an_update_of_a_whole_matrix_is_judged_by_what_it_does(name, update, power, mends):
    report = diagnosed(name, update, power)
    assert culprits(report) == ({} if mends is None else {name: ("lr", mends)})


def told(report: coordcheck.Report) -> tuple[str, str]:
    row = report.parameters.set_index("parameter").loc[HIDDEN]
    return row["verdict"], row["explanation"]


@pytest.mark.parametrize(("update", "power"), [(filled, 0.0), (turned_signs, -1.0)], ids=["filled", "turned"])
def test_where_few_examples_and_the_whole_batch_differ_nothing_is_decided(update, power):
    verdict, why = told(diagnosed(HIDDEN, update, power))
    assert verdict == "undecided"
    assert "after more on the whole batch: such an optimizer needs examples as many as the rank of its update" in why


def test_a_whole_batch_that_cannot_be_asked_is_told():
    missing = "judged on the probe alone (MemoryError)"
    assert any(missing in note for note in diagnosed(HIDDEN, orthonormal, 0.0, loss=few).notes)
    assert not any("probe alone" in note for note in diagnosed(HIDDEN, orthonormal, 0.0).notes)


@pytest.mark.parametrize(("power", "mends"), [(-0.5, None), (-1.0, 0.5)])
def test_an_update_of_the_size_of_signs_is_not_taken_for_signs(power, mends):
    report = diagnosed(HIDDEN, turned_signs, power, whole=True)
    assert culprits(report) == ({} if mends is None else {HIDDEN: ("lr", mends)})
    assert told(report)[0] == ("ok" if mends is None else "learns too slowly")


def exponent(value: float, stderr: float = 0.0) -> Exponent:
    return Exponent(value, stderr, value - 3 * stderr, value + 3 * stderr)


@pytest.mark.parametrize(
    ("measured", "value", "stderr"),
    [
        (exponent(0.95, 0.02), 1.0, 0.0),
        (exponent(0.55, 0.1), 0.5, 0.0),
        (exponent(0.55, 0.02), 0.5, 0.0),
        (exponent(0.73, 0.1), 0.73, 0.1),  # between the two, and as near to one as to the other
        (exponent(0.63, 0.14), 0.63, 0.14),
        (exponent(0.73, 0.02), 0.73, 0.02),  # near neither
        (exponent(0.1, 0.02), 0.1, 0.02),
        (exponent(0.1, 0.3), 0.1, 0.3),  # beyond both, and of more noise than they are apart
    ],
)
def test_of_two_norms_that_which_agrees_tells_or_what_was_measured(measured, value, stderr):
    found = agreeing((exponent(1.0), exponent(0.5)), measured)
    assert (found.value, found.stderr) == pytest.approx((value, stderr))
    assert measured.low - 1e-9 <= found.low <= found.value <= found.high


def test_of_two_norms_that_are_one_answer_the_more_exact_one_tells():
    assert agreeing((exponent(0.1), exponent(0.0, 0.05)), exponent(0.02, 0.02)).value == 0.1


def test_what_lies_between_a_power_of_the_width_and_a_norm_that_is_none_is_as_wide_as_they_are_apart():
    found = agreeing((exponent(0.0), exponent(-0.37, 0.04)), exponent(-0.28, 0.07))  # of rows of one length
    assert (found.value, found.low, found.high) == pytest.approx((-0.28, -0.49, 0.0))
    assert agreeing((exponent(0.0), exponent(-0.48, 0.04)), exponent(-0.4, 0.07)).value == -0.48
