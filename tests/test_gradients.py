"""Gradients as backward left them, beside what became of them."""

from __future__ import annotations

import math

import pytest
import torch

from coordcheck.recording.updates import gradients
from coordcheck.recording.updates.gradients import SAMPLED, arrived


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("shape", [(), (3,), (7, 600), (3, 40, 70)])
def test_a_factor_is_found(shape, dtype):
    gradient = numbers(*shape).to(dtype)
    before = arrived(gradient)
    assert gradients.factor(before, gradient) == 1.0
    assert gradients.factor(before, gradient / 8) == pytest.approx(8.0, rel=1e-3)
    assert not gradients.turned(before, gradient / 8)
    assert len(before.sample) <= SAMPLED


@pytest.mark.parametrize("now", [0.0, math.nan, math.inf])
def test_what_is_no_number_has_no_factor(now):
    before = arrived(numbers(8, 8))
    assert gradients.factor(before, torch.full((8, 8), now)) == 1.0
    assert not gradients.turned(before, torch.full((8, 8), now))
    assert gradients.factor(arrived(torch.full((8, 8), now)), numbers(8, 8)) == 1.0


@pytest.mark.parametrize(
    ("change", "turned"),
    [
        (lambda g: g.sign(), True),
        (lambda g: g.clamp(-0.1, 0.1), True),
        (lambda g: g + numbers(64, 64, seed=1), True),
        (lambda g: g.clamp(-9, 9), False),
        (lambda g: g + numbers(64, 64, seed=1) / 20, False),
        (lambda g: g * 1e-20, False),
    ],
)
def test_what_is_no_factor(change, turned):
    gradient = numbers(64, 64)
    assert gradients.turned(arrived(gradient), change(gradient)) is turned


def test_a_gradient_that_is_gone():
    before = arrived(numbers(8, 8))
    assert gradients.gone(before, None)
    assert gradients.gone(before, torch.zeros(8, 8))
    assert not gradients.gone(before, numbers(8, 8) / 2)
    assert not gradients.gone(arrived(torch.zeros(8, 8)), torch.zeros(8, 8))  # it was always zero
    assert float(gradients.stand_in(before, torch.zeros(8, 8)).norm()) == pytest.approx(before.norm)


@pytest.mark.parametrize(("size", "held"), [(1e-3, True), (1e-8, True), (3e-10, True), (1e-15, False)])
def test_an_update_is_read_where_the_parameter_holds_it(size, held):
    """Of weights near 1/20, most lose an update of 3e-10, but none of one as small."""
    weight, gradient = numbers(256, 256) / 20, numbers(256, 256, seed=1)
    now = weight - gradient * size
    found = gradients.unrounded(arrived(gradient), weight, now)
    assert found == (pytest.approx(size, rel=0.05) if held else 0.0)
    lost = float((now - weight).norm() / gradient.norm())
    assert (abs(lost / size - 1) > 0.05) == (size < 1e-9)


def test_without_any_gradient_nothing_is_read():
    weight = numbers(8, 8)
    assert gradients.unrounded(arrived(torch.zeros(8, 8)), weight, weight - 1) is None
