"""Every kind of output that a layer can have is a scale, or a row or note that says why there is none."""

from __future__ import annotations

import collections
import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coordcheck.recording.recorder import Recorder
from coordcheck.runs.records import RunRecord
from coordcheck.runs.words import Status

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(beta|prototype|nested|Nested|quantized|deprecated|TypedStorage|MaskedTensor).*"
)
SHAPE = (4, 8)


@dataclasses.dataclass
class Pair:
    logits: Tensor
    state: Any


Named = collections.namedtuple("Named", "first second")  # the old kind is one as well


def fake() -> Tensor:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.zeros(SHAPE)


def values(fill: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(SHAPE, fill, dtype=dtype)


KINDS: dict[str, tuple[Callable[[], Any], float | Status | str]] = {
    # what it returns, and: its scale, its status, or the layer's suffix whose scale is 3
    "float16": (lambda: values(300.0, torch.float16), 300.0),
    "bfloat16": (lambda: values(3.0, torch.bfloat16), 3.0),
    "float64": (lambda: values(1e200, torch.float64), 1e200),
    "float8": (lambda: values(3.0).to(torch.float8_e4m3fn), 3.0),
    "complex64": (lambda: values(3.0).to(torch.complex64), 3.0),
    "complex128": (lambda: values(3.0).to(torch.complex128) * 1j, 3.0),
    "int64": (lambda: values(3, torch.int64), Status.INTEGER),
    "bool": (lambda: values(1, torch.bool), Status.INTEGER),
    "sparse COO": (lambda: values(3.0).to_sparse(), 3.0),
    "sparse CSR": (lambda: values(3.0).to_sparse_csr(), 3.0),
    "nested": (lambda: torch.nested.nested_tensor([values(3.0), values(3.0)[:2]]), 3.0),
    "jagged": (lambda: torch.nested.nested_tensor([values(3.0), values(3.0)[:2]], layout=torch.jagged), 3.0),
    "quantized": (lambda: torch.quantize_per_tensor(values(3.0), 0.5, 0, torch.qint8), 3.0),
    "meta": (lambda: torch.zeros(SHAPE, device="meta"), Status.UNSUPPORTED),
    "fake": (fake, Status.UNSUPPORTED),
    "empty": (lambda: torch.zeros(0, 8), Status.EMPTY),
    "zero": (lambda: values(0.0), Status.ZERO),
    "NaN": (lambda: values(float("nan")), Status.NAN),
    "infinite": (lambda: values(float("inf")), Status.INF),
    "expanded": (lambda: torch.full((1, 8), 3.0).expand(4, 8), 3.0),
    "parameter": (lambda: nn.Parameter(values(3.0)), 3.0),
    "tuple": (lambda: (values(3.0), None), ":out[0]"),
    "list in a tuple": (lambda: ([values(1, torch.int64), values(3.0)], 7), ":out[0][1]"),
    "mapping": (lambda: {"logits": values(3.0), "name": "x"}, ":out['logits']"),
    "dataclass": (lambda: Pair(values(3.0), None), ":out.logits"),
    "named tuple": (lambda: Named(values(3.0), 1), ":out"),
    "None": (lambda: None, "nothing"),
    "number": (lambda: 3.0, "nothing"),
    "text": (lambda: "three", "nothing"),
    "object": (object, "nothing"),
}


class Returns(nn.Module):
    def __init__(self, make: Callable[[], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self) -> Any:
        return self.make()


class Model(nn.Module):
    def __init__(self, make: Callable[[], Any]) -> None:
        super().__init__()
        self.odd, self.fc = Returns(make), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        self.odd()
        return self.fc(x)


def recorded(make: Callable[[], Any]) -> RunRecord:
    """A loop of two steps around a model one of whose layers returns this."""
    model = Model(make)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings(), Recorder(model, optimizer, width=8, steps=1) as recorder:
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.ones(SHAPE)).square().mean().backward()
            optimizer.step()
    return recorder.record


@pytest.mark.fault(30)
@pytest.mark.fault(31)
@pytest.mark.fault(32)
@pytest.mark.fault(33)
@pytest.mark.fault(34)
@pytest.mark.fault(36)
@pytest.mark.fault(38)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_output_is_a_scale_or_says_why_not(kind: str):
    make, expected = KINDS[kind]
    record = recorded(make)
    assert record.finished
    assert not any("failed" in note for note in record.notes)
    rows = {
        (record.sites[row.site].layer, row.step): row
        for row in record.rows
        if record.sites[row.site].layer.startswith("odd") and row.quantity == "activation"
    }
    if expected == "nothing":
        assert rows == {}
        return
    if isinstance(expected, str) and not isinstance(expected, Status):
        found = [
            row for (layer, _), row in rows.items() if layer.startswith(f"odd{expected}") and row.value is not None
        ]
        assert [row.value for row in found] == pytest.approx([3.0, 3.0])
        return
    assert {step for _, step in rows} == {0, 1}
    for row in rows.values():
        if isinstance(expected, Status):
            assert row.status is expected
        else:
            assert (row.status, row.value) == (Status.OK, pytest.approx(expected, rel=1e-6))


def test_the_table_of_kinds_has_at_least_sixteen_of_tensors():
    assert sum(isinstance(expected, (float, Status)) for _, expected in KINDS.values()) >= 16
