"""Every statistic against its closed form or against float64 numpy, and what has no scale."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from coordcheck.recording import scales
from coordcheck.runs.words import Status

N = 200_000  # coordinates: a closed form of a random tensor then holds to about 1 %

BETA = "ignore:Sparse CSR tensor support is in beta state:UserWarning"


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def measured(statistic, tensor: torch.Tensor) -> float:
    return float(statistic(scales.measurable(tensor)))


def numpy_rms(array: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.abs(array.astype(np.float64)) ** 2)))


finite_arrays = hnp.arrays(
    np.float32,
    hnp.array_shapes(max_dims=4, max_side=7),
    elements=st.floats(-(2.0**20), 2.0**20, width=32, allow_subnormal=False).filter(lambda v: v == 0 or abs(v) > 1e-6),
)


@pytest.mark.parametrize("constant", [3.0, -0.25, 1e-6, 1e6])
@pytest.mark.parametrize("statistic", [scales.rms, scales.mean_abs])
def test_the_scale_of_a_constant_is_its_modulus(statistic, constant):
    assert measured(statistic, torch.full((5, 7), constant)) == pytest.approx(abs(constant), rel=1e-6)


@pytest.mark.parametrize("std", [0.01, 1.0, 50.0])
@pytest.mark.parametrize(("statistic", "factor"), [(scales.rms, 1.0), (scales.mean_abs, math.sqrt(2 / math.pi))])
def test_gaussian(statistic, factor, std):
    assert measured(statistic, std * normal(N)) == pytest.approx(std * factor, rel=0.01)


@pytest.mark.parametrize(("statistic", "factor"), [(scales.rms, 1 / math.sqrt(3)), (scales.mean_abs, 0.5)])
def test_uniform(statistic, factor):
    uniform = torch.rand(N, generator=torch.Generator().manual_seed(0)) * 4 - 2
    assert measured(statistic, uniform) == pytest.approx(2 * factor, rel=0.01)


@settings(deadline=None, max_examples=60)
@given(finite_arrays)
def test_every_shape_agrees_with_float64_numpy(array):
    values = scales.measurable(torch.from_numpy(array))
    assert float(scales.rms(values)) == pytest.approx(numpy_rms(array), rel=1e-5)
    assert float(scales.mean_abs(values)) == pytest.approx(float(np.abs(array.astype(np.float64)).mean()), rel=1e-5)


@settings(deadline=None, max_examples=60)
@given(finite_arrays, st.data())
def test_every_dim_agrees_with_float64_numpy(array, data):
    axes = st.sets(st.integers(0, array.ndim - 1), min_size=1).map(lambda found: tuple(sorted(found)))
    dim = data.draw(axes)
    exact = np.abs(array.astype(np.float64))
    values = torch.from_numpy(array)
    np.testing.assert_allclose(scales.rms(values, dim), np.sqrt((exact**2).mean(axis=dim)), rtol=1e-5)
    np.testing.assert_allclose(scales.mean_abs(values, dim), exact.mean(axis=dim), rtol=1e-5)


def test_the_rms_of_a_difference_is_the_closed_form():
    difference = torch.tensor([3.0, 1.0]) - torch.tensor([0.0, 1.0])
    assert float(scales.rms(difference)) == pytest.approx(3 / math.sqrt(2))
    assert float(scales.rms(difference - difference)) == 0.0


def test_a_large_tensor_loses_no_accuracy():
    values = torch.full((2**14, 256), 0.1)
    exact = float(values[0, 0])
    assert [float(scale) for scale in scales.rms_and_mean_abs(values.numpy())] == pytest.approx(
        [exact, exact], rel=2.0**-12
    )


@pytest.mark.parametrize("shape", [(3,), (70_001,), (300, 257), (2, 3, 40_000)])
def test_both_scales_together_are_each_alone(shape):
    values = normal(*shape)
    both = [float(scale) for scale in scales.rms_and_mean_abs(values.numpy())]
    assert both == pytest.approx([float(scales.rms(values)), float(scales.mean_abs(values))], rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("statistic", [scales.rms, scales.mean_abs])
@pytest.mark.fault(36)
def test_300_is_300_in_every_float_type(statistic, dtype):
    assert measured(statistic, torch.full((1000,), 300.0, dtype=dtype)) == pytest.approx(300.0, rel=1e-6)


def test_float64_is_not_narrowed():
    assert scales.measurable(torch.full((4,), 1e200, dtype=torch.float64)).dtype is torch.float64
    assert measured(scales.mean_abs, torch.full((4,), 1e200, dtype=torch.float64)) == pytest.approx(1e200, rel=1e-12)


@pytest.mark.fault(33)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("statistic", [scales.rms, scales.mean_abs])
def test_complex_values_are_measured_by_their_modulus(statistic, dtype):
    assert measured(statistic, torch.full((6,), 3 - 4j, dtype=dtype)) == pytest.approx(5.0, rel=1e-6)


@pytest.mark.fault(34)
@pytest.mark.filterwarnings(BETA)
@pytest.mark.parametrize("convert", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr], ids=["COO", "CSR"])
def test_sparse_tensors_count_their_zeros(convert):
    dense = torch.zeros(10, 10)
    dense[0, :4] = 2.0
    assert measured(scales.rms, convert(dense)) == pytest.approx(math.sqrt(4 * 4 / 100), rel=1e-6)
    assert measured(scales.mean_abs, convert(dense)) == pytest.approx(8 / 100, rel=1e-6)


@pytest.mark.parametrize(
    "view",
    [lambda t: t.T, lambda t: t[::3, 1::2], lambda t: t[:1].expand(9, -1), lambda t: t.flip(0)[2:]],
    ids=["transposed", "strided", "expanded", "flipped"],
)
def test_non_contiguous_tensors(view):
    tensor = view(normal(12, 20))
    assert measured(scales.rms, tensor) == pytest.approx(numpy_rms(tensor.numpy()), rel=1e-6)
    assert measured(scales.mean_abs, tensor) == pytest.approx(float(np.abs(tensor.numpy()).mean()), rel=1e-6)


@pytest.mark.fault(32)
@pytest.mark.fault(34)
@pytest.mark.fault(38)
@pytest.mark.parametrize(
    ("tensor", "status"),
    [
        (torch.arange(3), Status.INTEGER),
        (torch.ones(3, dtype=torch.uint8), Status.INTEGER),
        (torch.ones(3, dtype=torch.bool), Status.INTEGER),
        (torch.zeros(0), Status.EMPTY),
        (torch.zeros(4, 0, 3, dtype=torch.float16), Status.EMPTY),
        (torch.zeros(3, device="meta"), Status.UNSUPPORTED),
        (torch.zeros(3, device="meta", dtype=torch.bfloat16), Status.UNSUPPORTED),
    ],
    ids=str,
)
def test_a_tensor_without_a_scale_says_why(tensor, status):
    with pytest.raises(scales.NotMeasurable, match=status.value) as caught:
        scales.measurable(tensor)
    assert caught.value.status is status


def test_a_fake_tensor_is_unsupported():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), pytest.raises(scales.NotMeasurable, match="unsupported"):
        scales.measurable(torch.zeros(3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.complex64])
def test_no_statistic_leaves_a_graph(dtype):
    tensor = torch.ones(4, dtype=dtype, requires_grad=True) * 2
    values = scales.measurable(tensor)
    assert tensor.requires_grad
    assert not values.requires_grad
    assert all(statistic(values).grad_fn is None for statistic in (scales.rms, scales.mean_abs))


@pytest.mark.parametrize("statistic", [scales.rms, scales.mean_abs])
def test_a_scale_is_a_tensor_without_dimensions(statistic):
    assert statistic(normal(3, 4)).shape == ()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("statistic", [scales.rms, scales.mean_abs])
def test_not_finite_coordinates_are_not_hidden(statistic, value):
    tensor = normal(50)
    tensor[7] = value
    assert not math.isfinite(measured(statistic, tensor))


@pytest.mark.parametrize("shape", [(), (1,), (scales.SAMPLED_COORDINATES,), (2, 8, scales.SAMPLED_COORDINATES // 16)])
def test_a_small_tensor_is_sampled_whole(shape):
    values = normal(*shape)
    assert scales.sample_rows(values) is values


@pytest.mark.parametrize("shape", [(300, 64), (8, 1024, 256), (16, 32, 32, 32), (5, 70_001)])
def test_which_rows_are_sampled_depends_on_the_shape_alone(shape):
    numbered = torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)
    once, again = scales.sample_rows(numbered), scales.sample_rows(-numbered)
    assert torch.equal(once, -again)
    assert once.unique().numel() > 0.95 * once.numel()


@pytest.mark.parametrize("shape", [(300, 64), (16, 10), (7,), (), (8, 96, 28, 28)])
def test_stacked_tensors_are_sampled_as_each_of_them(shape):
    several = [normal(*shape, seed=seed) for seed in range(3)]
    each = torch.stack([scales.sample_rows(values) for values in several])
    assert torch.equal(scales.sample_rows(torch.stack(several), stacked=True), each)


@pytest.mark.parametrize("shape", [(8, 1024, 256), (64, 512, 64), (16, 64, 32, 32), (8, 96, 28, 28)])
def test_the_sample_is_large_enough_and_no_larger(shape):
    sample = scales.sample_rows(torch.zeros(shape))
    standard_error = 1 / math.sqrt(2 * sample.numel())
    assert standard_error < 0.015
    assert sample.numel() <= 2 * max(scales.SAMPLED_COORDINATES, scales.SAMPLED_ROWS * shape[-1])


@pytest.mark.parametrize("shape", [(32, 512, 64), (8, 256, 1024), (3, 1000, 100), (16, 64, 32, 32), (8, 96, 28, 28)])
def test_the_rms_of_the_sample_is_close_to_the_whole(shape):
    values = normal(*shape)
    assert scales.rms(scales.sample_rows(values)).item() == pytest.approx(float(scales.rms(values)), rel=0.03)


# twice as many rows as channels, or more, are sampled of each of these
CHANNELS_FIRST = [
    (16, 64, 32, 32),
    (64, 64, 16, 16),
    (16, 128, 16, 16),
    (32, 64, 8, 8),
    (32, 32, 64, 64),
    (8, 48, 28, 28),
]


@pytest.mark.parametrize("shape", CHANNELS_FIRST)
def test_the_sample_visits_every_channel_of_a_channels_first_tensor(shape):
    channels = torch.arange(shape[1]).view(1, -1, 1, 1).expand(shape)
    assert scales.sample_rows(channels).unique().numel() == shape[1]


@pytest.mark.parametrize("shape", [(4, 256, 32, 32), (16, 64, 32, 32)])
def test_the_sample_of_unequal_channels_is_close_to_the_whole(shape):
    gains = torch.arange(1.0, shape[1] + 1).view(1, -1, 1, 1)
    values = normal(*shape) * gains
    assert scales.rms(scales.sample_rows(values)).item() == pytest.approx(float(scales.rms(values)), rel=0.06)


@pytest.mark.parametrize("shape", [(300, 64), (16, 10), (7,), (), (8, 96, 28, 28)])
def test_an_array_in_memory_is_sampled_as_a_tensor_is(shape):
    values = normal(*shape)
    copied = scales.sampled_copy(values.numpy())
    assert torch.equal(torch.from_numpy(copied), scales.sample_rows(values))
    copied += 1
    assert torch.equal(values, normal(*shape))


SUMS_TO = 2.0**-12  # relative, whatever the order of summation: `scales.PIECE` roundings
RMS_TO = 2.0**-13


def one_after_the_other(numbers: np.ndarray) -> float:
    """The sum that the slowest processor's BLAS could give: one lane, every partial sum rounded to float32."""
    return float(np.add.accumulate(numbers, dtype=np.float32)[-1])


@pytest.fixture(params=["this machine's BLAS", "one lane"])
def _any_blas(request, monkeypatch):
    if request.param == "one lane":
        naive = (lambda x, y: one_after_the_other(x * y), lambda x: one_after_the_other(np.abs(x)))
        monkeypatch.setitem(scales._BLAS, "f", (*naive, scales._BLAS["f"][2]))


MANY = {
    "equal": torch.full((2**20,), 0.1),
    "normal": normal(2**20),
    "a large one first": torch.cat([torch.tensor([1e4]), torch.full((2**20,), 0.1)]),
    "a large one last": torch.cat([torch.full((2**20,), 0.1), torch.tensor([1e4])]),
    "few": torch.full((5000,), 0.1),
}


@pytest.mark.usefixtures("_any_blas")
@pytest.mark.parametrize("kind", MANY)
def test_a_sum_does_not_depend_on_the_machine(kind):
    values = MANY[kind]
    exact, size = values.double(), float(values.double().abs().mean())
    expected = pytest.approx(float(exact.square().mean().sqrt()), rel=RMS_TO)
    assert scales.norm(values) / math.sqrt(values.numel()) == expected
    assert scales.rms_of_difference(values.numpy().copy(), np.zeros(len(values), np.float32)) == expected
    assert scales.rms_and_mean_abs(values.numpy()) == (expected, pytest.approx(size, rel=SUMS_TO))


def test_a_sum_in_longer_pieces_would_depend_on_it(monkeypatch):
    """The test above can fail."""
    values = torch.full((2**20,), 0.1)
    monkeypatch.setitem(scales._BLAS, "f", (lambda x, y: one_after_the_other(x * y), *scales._BLAS["f"][1:]))
    monkeypatch.setattr(scales, "PIECE", 2**20)
    assert abs(float(scales.norm(values)) / (0.1 * 2**10) - 1) > 1e-3


@pytest.mark.parametrize("value", [1e-44, 1e-30, 1e-20, 1.0, 1e20, 1e30, 3e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.fault(36)
def test_squares_neither_overflow_nor_vanish(value, dtype):
    values = torch.tensor([3.0, -4.0, 0.0] * 5000, dtype=torch.float64).mul(value / 4).to(dtype)
    exact = values.double()
    rms, size = float(exact.square().mean().sqrt()), float(exact.abs().mean())
    assert scales.rms_of(values) == pytest.approx(rms, rel=1e-4)
    if dtype is not torch.bfloat16:
        assert scales.rms_and_mean_abs(values.numpy()) == pytest.approx((rms, size), rel=1e-4)
        assert scales.rms_of_difference(values.numpy(), 0 * values.numpy()) == pytest.approx(rms, rel=1e-4)


def test_float64_squares_neither_overflow_nor_vanish():
    for value in (1e-200, 1e200):
        assert scales.rms_of(torch.full((5000,), value, dtype=torch.float64)) == pytest.approx(value)


@pytest.mark.parametrize("value", [0.0, math.inf, -math.inf, math.nan])
def test_what_has_no_logarithm_stays_what_it_is(value):
    values = torch.full((5000,), abs(value))
    assert scales.norm(values) == pytest.approx(abs(value), nan_ok=True)
    assert scales.rms_and_mean_abs(values.numpy()) == pytest.approx((abs(value), abs(value)), nan_ok=True)
    among = torch.ones(5000)
    among[4321] = value
    expected = 1.0 if value == 0 else abs(value)
    assert scales.rms_of(among) == pytest.approx(expected, rel=1e-3, nan_ok=True)
    assert scales.rms_and_mean_abs(among.numpy()) == pytest.approx((expected, expected), rel=1e-3, nan_ok=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_rms_of_a_tensor_of_any_kind(dtype):
    values = normal(64, 32).to(dtype)
    expected = values.double().pow(2).mean().sqrt().item()
    assert float(scales.rms_of(values)) == pytest.approx(expected, rel=1e-3 if dtype.itemsize < 4 else 1e-6)
    assert float(scales.rms_of(values.T)) == pytest.approx(float(scales.rms_of(values)))


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_entries_do_not_depend_on_how_a_tensor_lies_in_memory(axes):
    values = normal(40, 30, 20, 16)
    turned = values.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    assert not turned.is_contiguous()
    assert torch.equal(scales.sample_entries(turned, axes), scales.sample_entries(values, axes))


def test_entries_that_belong_to_those_of_another_tensor():
    narrow, wide = normal(8, 1000, 64), torch.arange(8 * 1000.0).view(8, 1000, 1).expand(8, 1000, 256)
    numbered = torch.arange(8 * 1000.0).view(8, 1000, 1).expand(8, 1000, 64)
    rows = scales.sample_entries(wide, 2, narrow.shape)
    assert torch.equal(rows[:, 0], scales.sample_entries(numbered, 2)[:, 0])
