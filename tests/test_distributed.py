"""One run on several ranks: DDP, FSDP2 and tensor parallelism against one process, and ranks that go astray.

The scenarios are functions of the rank. One pair of processes runs all of those that end well, in order; each that must
not hang has a pair of its own.
"""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import cache, wraps
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

import coordcheck
from coordcheck.models import mlp, transformer
from coordcheck.models.transformer import Attention
from coordcheck.recording.distributed import ranks
from coordcheck.recording.distributed.shards import local_part
from coordcheck.runs.files import RunFolder
from coordcheck.runs.records import RunKey, RunRecord
from coordcheck.runs.schemas import read_run
from coordcheck.runs.words import Kind, Quantity, Status

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")

WORLD = 2
TIMEOUT = 120  # seconds after which a pair of processes is taken to hang
STEPS = 3
# Largest relative difference between the scales of two ranks and those of one process, where every coordinate counts.
# Sums are made in another order, in float32: 6e-8 per addition, some ten times that in a change, which is a difference
# of larger outputs. Measured: 1.4e-7 in activations and mean_abs, 4.4e-7 in changes.
ROUNDING = 1e-5
# The same where a change is followed on a sample. One process follows 128 rows of 32 channels, two ranks 256 others. If
# the rows' mean squares varied as much as exponential numbers do (they vary less), the two RMS would differ by
# sqrt(1/128 + 1/256) / 2 = 0.054 as a standard deviation; three of them are allowed. Measured: 0.033.
SAMPLING = 0.16


# ---- what is trained, on one process or on several


def examples(count: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 64, generator=generator), torch.randint(10, (count,), generator=generator)


def texts(count: int = 4, length: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(256, (count, length + 1), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


def make_mlp(width: int = 32) -> nn.Module:
    torch.manual_seed(0)
    return mlp("SP")(width)[0]


def make_transformer(width: int = 64) -> nn.Module:
    torch.manual_seed(0)
    model = transformer("SP", norm="layernorm", biases=True)(width)[0]
    for module in model.modules():
        if isinstance(module, Attention):
            module.__class__ = LocalHeads
    return model


class LocalHeads(Attention):
    """The reference attention on as many heads as query, key and value come with: some of them, where ranks share."""

    def forward(self, x: Tensor) -> Tensor:
        batch, time, _ = x.shape
        query, key, value = (
            layer(x).view(batch, time, -1, self.head_size).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=self.scale)
        return self.output(mixed.transpose(1, 2).reshape(batch, time, -1))


def descent(model: nn.Module) -> Optimizer:
    # plain gradient descent is linear in the gradient, where Adam would blow rounding errors up to full steps
    return SGD(model.parameters(), lr=0.1)


def train(model: nn.Module, optimizer: Optimizer, batch: tuple[Tensor, Tensor], updates: int = STEPS + 1) -> None:
    x, y = batch
    for _ in range(updates):
        optimizer.zero_grad()
        F.cross_entropy(model(x).flatten(0, -2), y.flatten()).backward()
        optimizer.step()


def recorder(model: nn.Module, optimizer: Optimizer, **options: Any) -> coordcheck.Recorder:
    # a label of its own for each scenario: ranks that count the runs of one name differently would never meet again
    label = Path(options.get("save_to", "model")).name
    defaults = {"width": 64, "label": label, "steps": STEPS, "own_updates": False}
    return coordcheck.Recorder(model, optimizer, **defaults | options)


def recorded(
    model: nn.Module, batch: tuple[Tensor, Tensor], *, call: Any = None, **options: Any
) -> coordcheck.RunRecord | Any:
    optimizer = descent(model)
    with recorder(model, optimizer, **options) as found:
        train(model if call is None else call, optimizer, batch)
    return found.record


def mine(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """This rank's examples."""
    rank = torch.distributed.get_rank()
    return batch[0].chunk(WORLD)[rank], batch[1].chunk(WORLD)[rank]


def mesh(name: str) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", (WORLD,), mesh_dim_names=(name,))


# ---- scenarios: each gives the record of rank 0


def ddp(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def ddp_mlp(folder: str) -> RunRecord:
    return recorded(ddp(make_mlp()), mine(examples()), save_to=folder)


def ddp_transformer(folder: str) -> RunRecord:
    return recorded(ddp(make_transformer()), mine(texts()), save_to=folder)


def ddp_sampled(folder: str) -> RunRecord:
    return recorded(ddp(make_mlp()), mine(examples(4096)), save_to=folder)


def ddp_uneven(folder: str) -> RunRecord:
    """Examples that are split 12 to 4: DDP takes the mean over ranks, so each weighs its own by its share."""
    x, y = examples()
    rank = torch.distributed.get_rank()
    x, y = (x[:12], y[:12]) if rank == 0 else (x[12:], y[12:])
    model = ddp(make_mlp())
    optimizer = descent(model)
    with recorder(model, optimizer, save_to=folder) as found:
        for _ in range(STEPS + 1):
            optimizer.zero_grad()
            (F.cross_entropy(model(x), y, reduction="sum") * WORLD / 16).backward()
            optimizer.step()
    return found.record


def sharded(model: nn.Module, *, layers: Any = ()) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for layer in layers:
        fully_shard(layer, mesh=mesh("data"))
    return fully_shard(model, mesh=mesh("data"))


def fsdp_mlp(folder: str) -> RunRecord:
    model = make_mlp()
    return recorded(sharded(model, layers=[model.input, *model.hidden]), mine(examples()), save_to=folder)


def fsdp_transformer(folder: str) -> RunRecord:
    model = make_transformer()
    return recorded(sharded(model, layers=model.blocks), mine(texts()), save_to=folder)


def tensor_mlp(folder: str) -> RunRecord:
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    model = make_mlp()
    plan = {"input": ColwiseParallel(), "hidden.0": RowwiseParallel(), "hidden.1": ColwiseParallel()}
    parallelize_module(model, mesh("tensor"), {**plan, "readout": RowwiseParallel()})
    return recorded(model, examples(), save_to=folder)


def tensor_mlp_of_dtensors(folder: str) -> RunRecord:
    """Outputs stay DTensors, some of them shards."""
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    model = make_mlp()
    plan = {
        "input": ColwiseParallel(use_local_output=False),
        "hidden.0": RowwiseParallel(use_local_output=False),
        "hidden.1": ColwiseParallel(input_layouts=Replicate(), use_local_output=False),
        "readout": RowwiseParallel(),
    }
    parallelize_module(model, mesh("tensor"), plan)
    return recorded(model, examples(), save_to=folder)


def attention_plan(**more: Any) -> dict[str, Any]:
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

    plan: dict[str, Any] = {}
    for block in (0, 1):
        plan |= {f"blocks.{block}.attention.{name}": ColwiseParallel() for name in ("query", "key", "value")}
        plan[f"blocks.{block}.attention.output"] = RowwiseParallel(**more)
        plan[f"blocks.{block}.mlp.up"] = ColwiseParallel()
        plan[f"blocks.{block}.mlp.down"] = RowwiseParallel(**more)
    return plan


def tensor_transformer(folder: str) -> RunRecord:
    from torch.distributed.tensor.parallel import parallelize_module

    model = make_transformer()
    parallelize_module(model, mesh("tensor"), attention_plan())
    return recorded(model, texts(), save_to=folder)


def sequence_transformer(folder: str) -> RunRecord:
    """Tensor parallel, with the residual stream split along the positions, and norms on it."""
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor import parallel as p

    model = make_transformer()
    plan = attention_plan(output_layouts=Shard(1))
    gathered = p.PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),))
    for block in (0, 1):
        plan |= {f"blocks.{block}.{name}": p.SequenceParallel() for name in ("attention_norm", "mlp_norm")}
        plan |= {f"blocks.{block}.{name}": gathered for name in ("attention", "mlp")}
    plan |= {
        "embedding": p.RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "positions": p.RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(0)),
        "final_norm": p.SequenceParallel(),
        "unembedding": p.ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
    }
    p.parallelize_module(model, mesh("tensor"), plan)
    return recorded(model, texts(), save_to=folder)


def summands(folder: str) -> RunRecord:
    """A row-wise layer that leaves its sum over the ranks to what follows."""
    from torch.distributed.tensor import Partial
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    model = make_mlp()
    plan = {"input": ColwiseParallel(), "hidden.0": RowwiseParallel(output_layouts=Partial())}
    parallelize_module(model, mesh("tensor"), plan)
    x, _ = examples()
    optimizer = descent(model)
    with recorder(model, optimizer, save_to=folder) as found:
        for _ in range(STEPS + 1):
            optimizer.zero_grad()
            model.hidden[0](model.input(x)).square().mean().backward()
            optimizer.step()
    return found.record


def own_widths(folder: str) -> RunRecord:
    """Plain models: every rank has a width of its own, and writes its own file."""
    width = 32 * (1 + torch.distributed.get_rank())
    return recorded(make_mlp(width), examples(), width=width, save_to=folder)


def by_hand(folder: str) -> RunRecord:
    """A plain model whose gradients the loop itself averages."""
    model, (x, y) = make_mlp(), mine(examples())
    optimizer = descent(model)
    with recorder(model, optimizer, save_to=folder, group=torch.distributed.group.WORLD) as found:
        for _ in range(STEPS + 1):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            for parameter in model.parameters():
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= WORLD
            optimizer.step()
    return found.record


def stages(folder: str) -> RunRecord:
    """A pipeline: each rank holds, and records, other layers."""
    torch.manual_seed(0)
    whole = nn.ModuleList([nn.Linear(64, 32), nn.Linear(32, 10)])
    rank, (x, _) = torch.distributed.get_rank(), examples()
    model = nn.ModuleDict({str(rank): whole[rank]})
    optimizer = descent(model)
    with recorder(model, optimizer, save_to=folder, group=torch.distributed.group.WORLD) as found:
        for _ in range(STEPS + 1):
            optimizer.zero_grad()
            model[str(rank)](x if rank == 0 else torch.ones(16, 32)).square().mean().backward()
            optimizer.step()
    return found.record


def routed(folder: str) -> RunRecord:
    """A layer that only one rank's examples reach, and a NaN that only one rank sees."""

    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.expert, self.shared = nn.Linear(64, 64), nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.shared(self.expert(x) if torch.distributed.get_rank() == 1 else x)

    x, y = mine(examples())
    model = nn.parallel.DistributedDataParallel(Routed(), find_unused_parameters=True)
    if torch.distributed.get_rank() == 1:
        x = x * math.nan
    return recorded(model, (x, y), save_to=folder)


def ddp_compiled(folder: str) -> RunRecord:
    return recorded(torch.compile(ddp(make_mlp()), backend="eager"), mine(examples()), save_to=folder)


def probed(make: Callable[[], nn.Module], data: tuple[Tensor, Tensor], folder: str) -> RunRecord:
    """A training on a stream, looked at on the batch of the others; the same without is the same to the bit."""
    trained = []
    for probe in (None, data[0]):
        model = make()
        optimizer = descent(model)
        found = recorder(model, optimizer, save_to=folder, probe=probe) if probe is not None else nullcontext()
        with found:
            train(model, optimizer, data, updates=1)  # what the others have trained on until t=1
            train(model, optimizer, (data[0].flip(0), data[1]), updates=STEPS)
        trained.append([local_part(p.detach()) for p in (*model.parameters(), *model.buffers())])
    assert all(map(torch.equal, *trained))
    assert found.done
    return found.record


def normed_mlp() -> nn.Module:
    """With running averages, which DistributedDataParallel sends around at every call of it."""
    model = make_mlp()
    model.input = nn.Sequential(model.input, nn.BatchNorm1d(32))
    return model


def ddp_probed(folder: str) -> RunRecord:
    return probed(lambda: ddp(make_mlp()), mine(examples()), folder)


def ddp_normed_probed(folder: str) -> RunRecord:
    return probed(lambda: ddp(normed_mlp()), mine(examples()), folder)


def ddp_compiled_probed(folder: str) -> RunRecord:
    return probed(lambda: torch.compile(ddp(make_mlp()), backend="eager"), mine(examples()), folder)


def fsdp_probed(folder: str) -> RunRecord:
    def make() -> nn.Module:
        model = make_mlp()
        return sharded(model, layers=[model.input, *model.hidden])

    return probed(make, mine(examples()), folder)


def tensor_probed(folder: str) -> RunRecord:
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    def make() -> nn.Module:
        model = make_mlp()
        plan = {"input": ColwiseParallel(), "hidden.0": RowwiseParallel(), "hidden.1": ColwiseParallel()}
        return parallelize_module(model, mesh("tensor"), {**plan, "readout": RowwiseParallel()})

    return probed(make, examples(), folder)


# ---- scenarios that must not hang


def impatient(scenario: Callable[[str], Any]) -> Callable[[str], Any]:
    """The scenario, without ten seconds of waiting for ranks that never begin."""

    @wraps(scenario)
    def run(folder: str) -> Any:
        found, ranks.ABSENCE = ranks.ABSENCE, 1.0
        try:
            return scenario(folder)
        finally:
            ranks.ABSENCE = found

    return run


def one_rank_raises(folder: str) -> RunRecord:
    """Rank 1 fails after its second update; the other one has no collective left that would wait for it."""
    model, batch = make_mlp(), mine(examples())
    optimizer = descent(model)
    rank = torch.distributed.get_rank()
    with (
        suppress(ValueError),
        recorder(model, optimizer, save_to=folder, group=torch.distributed.group.WORLD) as found,
    ):
        train(model, optimizer, batch, updates=2)
        if rank == 1:
            raise ValueError("out of luck")
        train(model, optimizer, batch, updates=2)
    return found.record


@impatient
def one_rank_records(folder: str) -> RunRecord:
    model = ddp(make_mlp())
    if torch.distributed.get_rank() == 0:
        return recorded(model, mine(examples()), save_to=folder)
    train(model, descent(model), mine(examples()))
    return RunRecord(RunKey("model", 64, 0))


@impatient
def other_widths(folder: str) -> RunRecord:
    """Ranks that share a model, but call it by different widths."""
    return recorded(ddp(make_mlp()), mine(examples()), width=64 + torch.distributed.get_rank(), save_to=folder)


def ddp_diagnosed(folder: str) -> RunRecord:
    return recorded(ddp(make_mlp()), mine(examples()), own_updates=True, save_to=folder)


def fsdp_diagnosed(folder: str) -> RunRecord:
    return recorded(sharded(make_mlp()), mine(examples()), own_updates=True, save_to=folder)


ENDING_WELL: dict[str, Callable[[str], RunRecord]] = {
    f.__name__: f
    for f in (
        *(ddp_mlp, ddp_transformer, ddp_sampled, ddp_uneven, ddp_compiled, fsdp_mlp, fsdp_transformer),
        *(tensor_mlp, tensor_mlp_of_dtensors, tensor_transformer, sequence_transformer, summands),
        *(own_widths, by_hand, stages, routed, one_rank_raises, one_rank_records, other_widths),
        *(ddp_diagnosed, fsdp_diagnosed),
        *(ddp_probed, ddp_normed_probed, ddp_compiled_probed, fsdp_probed, tensor_probed),
    )
}


# ---- scenarios that end one of the processes


def one_rank_dies(folder: str) -> None:
    """Rank 1 is killed before it hands anything in."""
    import_module("coordcheck.recording.recorder").PATIENCE = 1.0
    model = make_mlp()
    optimizer = descent(model)
    with recorder(model, optimizer, save_to=folder, group=torch.distributed.group.WORLD):
        train(model, optimizer, mine(examples()), updates=2)
        torch.distributed.barrier()
        if torch.distributed.get_rank() == 1:
            os._exit(0)
        train(model, optimizer, mine(examples()), updates=2)


def the_store_goes(folder: str) -> None:
    """Rank 0, which keeps the store, is gone before rank 1 hands in its part."""
    logging.basicConfig()
    model = make_mlp()
    optimizer = descent(model)
    with recorder(model, optimizer, save_to=folder, group=torch.distributed.group.WORLD):
        train(model, optimizer, mine(examples()), updates=2)
        torch.distributed.barrier()
        if torch.distributed.get_rank() == 0:
            os._exit(0)
        time.sleep(1)
        train(model, optimizer, mine(examples()), updates=2)
    print("trained to its end")


ASTRAY: dict[str, Callable[[str], None]] = {f.__name__: f for f in (one_rank_dies, the_store_goes)}


# ---- processes


def run_rank(rank: int, store: str, folder: str, names: list[str]) -> None:
    """The whole life of one rank."""
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")  # of every nn.Linear on 3-D
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD)
    for name in names:
        target = Path(folder, name)
        if name in ASTRAY:
            ASTRAY[name](str(target))
            return  # the other rank may be gone
        record = ENDING_WELL[name](str(target))
        Path(folder, f"{name}.{rank}.json").write_text(json.dumps(record.to_json()))
        torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def pair(folder: Path, *names: str, store: str | None = None) -> list[str]:
    """Run scenarios on two ranks; what each of them printed. A pair that hangs is killed, and fails the test."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, __file__]
    rest = [store or f"file://{folder}/store", str(folder), *names]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [subprocess.Popen([*command, str(rank), *rest], env=environment, **options) for rank in range(WORLD)]
    try:
        until = time.monotonic() + TIMEOUT
        return [process.communicate(timeout=max(1, until - time.monotonic()))[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where one pair of processes has run all scenarios that end well; the workers of one test run share it."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "two-ranks"
    try:
        shared.mkdir()
    except FileExistsError:
        until = time.monotonic() + TIMEOUT
        while not (shared / "printed").exists() and time.monotonic() < until:
            time.sleep(0.2)
    else:
        printed = pair(shared, *ENDING_WELL)
        (shared / "printing").write_text("\n".join(printed))
        (shared / "printing").rename(shared / "printed")
    return shared


def record_of(folder: Path, name: str, rank: int = 0) -> RunRecord:
    """What a rank recorded in a scenario."""
    path = folder / f"{name}.{rank}.json"
    assert path.exists(), (folder / "printed").read_text()
    return read_run(json.loads(path.read_text()))


def files(folder: Path, name: str) -> list[str]:
    return sorted(path.name for path in (folder / name).rglob("*.json"))


Table = dict[tuple[str, int, str], tuple[float | None, str]]


def table(record: RunRecord) -> Table:
    """(layer, step, quantity) -> value and status, of the classical quantities."""
    classical = {Quantity.ACTIVATION, Quantity.MEAN_ABS, Quantity.CHANGE}
    return {
        (record.sites[row.site].layer, row.step, row.quantity.value): (row.value, row.status.value)
        for row in record.rows
        if row.quantity in classical
    }


def largest_difference(found: Table, expected: Table, *quantities: str) -> float:
    """Relative, over all rows of these quantities; the rows themselves and their statuses must be the same."""
    assert found.keys() == expected.keys()
    worst = 0.0
    for key, (value, status) in expected.items():
        other, other_status = found[key]
        assert status == other_status, key
        if value and other and key[2] in quantities:
            worst = max(worst, abs(other / value - 1))
    return worst


@cache
def alone(name: str) -> RunRecord:
    """The same training in one process."""
    torch.set_num_threads(1)
    if name == "transformer":
        return recorded(make_transformer(), texts())
    return recorded(make_mlp(), examples(4096 if name == "sampled" else 16))


EXACT = {
    "mlp": ["ddp_mlp", "ddp_uneven", "ddp_compiled", "fsdp_mlp", "tensor_mlp", "tensor_mlp_of_dtensors", "by_hand"],
    "transformer": ["ddp_transformer", "fsdp_transformer", "tensor_transformer", "sequence_transformer"],
}


@pytest.mark.parametrize(("reference", "name"), [(key, name) for key, names in EXACT.items() for name in names])
def test_two_ranks_record_what_one_process_does(folder, reference, name):
    found, expected = record_of(folder, name), alone(reference)
    differences = {
        q: largest_difference(table(found), table(expected), q) for q in ("activation", "mean_abs", "change")
    }
    print(name, differences)
    assert max(differences.values()) < ROUNDING
    assert found.sites == expected.sites
    assert found.parameters == expected.parameters
    assert found.settings == expected.settings
    assert found.notes == ["scales are those of ranks 0, 1 together"]


@pytest.mark.fault(44)
@pytest.mark.parametrize("name", ["ddp_probed", "ddp_compiled_probed", "fsdp_probed", "tensor_probed"])
def test_a_probe_on_two_ranks_is_that_of_one_process(folder, name):
    """Until t=1 the training is that of the fixed batch, and so are all scales."""
    found, expected = table(record_of(folder, name)), table(alone("mlp"))
    assert found.keys() == expected.keys()
    found, expected = ({key: row for key, row in rows.items() if key[1] < 2} for rows in (found, expected))
    assert largest_difference(found, expected, "activation", "mean_abs", "change") < ROUNDING
    assert "failed" not in str(record_of(folder, name).notes)


def test_a_probe_leaves_running_averages_alone_that_ranks_share(folder):
    """The scenario itself compares the training with one without."""
    assert {status for _, status in table(record_of(folder, "ddp_normed_probed")).values()} == {"ok"}


@pytest.mark.parametrize("name", ["ddp_mlp", "fsdp_mlp", "tensor_mlp", "by_hand"])
def test_one_rank_alone_does_not(folder, name):
    """Without the reduction the comparison fails: what a rank sees by itself is far from the whole."""
    own, whole = table(record_of(folder, name, rank=1)), table(alone("mlp"))
    assert largest_difference(own, whole, "activation") > 100 * ROUNDING


def test_changes_of_large_outputs_are_followed_on_other_rows(folder):
    found, expected = table(record_of(folder, "ddp_sampled")), table(alone("sampled"))
    assert largest_difference(found, expected, "activation", "mean_abs") < ROUNDING
    difference = largest_difference(found, expected, "change")
    print("sampled", difference)
    assert ROUNDING < difference < SAMPLING


@pytest.mark.parametrize("name", [*EXACT["mlp"], *EXACT["transformer"]])
def test_one_rank_writes_the_file_of_all(folder, name):
    assert files(folder, name) == ["64-0.json"]
    (written,) = RunFolder(folder / name).records()
    assert written.rows == record_of(folder, name).rows
    assert written.rows != record_of(folder, name, rank=1).rows


def test_plain_models_are_runs_of_their_own(folder):
    assert files(folder, "own_widths") == ["32-0.json", "64-0.json"]
    for rank, width in ((0, 32), (1, 64)):
        found = record_of(folder, "own_widths", rank)
        assert found.rows == recorded(make_mlp(width), examples(), width=width).rows
        assert found.notes == []


def test_what_every_rank_holds_a_summand_of_is_not_measured(folder):
    found = record_of(folder, "summands")
    assert found.notes[0] == "the output of hidden.0, of which every rank holds a summand, was not measured (4 times)"
    assert {row.status for row in found.rows if found.sites[row.site].layer == "hidden.0"} == {Status.UNSUPPORTED}
    assert {row.status for row in found.rows if found.sites[row.site].layer == "input"} == {Status.OK}


def test_stages_of_a_pipeline_are_one_run(folder):
    found = record_of(folder, "stages")
    assert [site.layer for site in found.sites] == ["0", "1"]
    assert [p.name for p in found.parameters] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert {(row.site, row.step) for row in found.rows} == {
        (site, step) for site in (0, 1) for step in range(STEPS + 1)
    }
    assert "the ranks hold different parts of the model: its own output is that of the first part" in found.notes


def test_layers_that_one_rank_reaches_count_there_alone(folder):
    found, own = table(record_of(folder, "routed")), table(record_of(folder, "routed", rank=1))
    assert found["expert", 0, "activation"] == own["expert", 0, "activation"] == (None, "nan")
    assert found["shared", 0, "activation"] == (None, "nan")


def test_a_rank_that_fails_is_told(folder):
    found = record_of(folder, "one_rank_raises")
    assert "rank 1 failed: ValueError: out of luck" in found.notes
    assert "scales from t=2 on are not those of the whole: rank 1 stopped before" in found.notes
    assert files(folder, "one_rank_raises") == ["64-0.json"]


def test_a_rank_without_a_recorder_is_told(folder):
    found = record_of(folder, "one_rank_records")
    assert "rank 1 handed in nothing: every scale is of rank 0 alone" in found.notes[0]
    assert files(folder, "one_rank_records") == ["64-0.json"]


def test_ranks_that_give_different_widths_are_told(folder):
    for rank in range(WORLD):
        assert f"rank {1 - rank} handed in nothing" in record_of(folder, "other_widths", rank).notes[0]


def test_own_updates_are_those_of_the_lowest_rank(folder):
    found = record_of(folder, "ddp_diagnosed")
    assert largest_difference(table(found), table(alone("mlp")), "activation", "change") < ROUNDING
    own = {Quantity.OWN_UPDATE, Quantity.WEIGHT}
    assert own <= {row.quantity for row in found.rows}
    assert {found.sites[row.site].kind for row in found.rows if row.quantity in own} == {Kind.PARAMETER}
    assert found.uses


def test_own_updates_of_shards_are_left_out_and_told(folder):
    found = record_of(folder, "fsdp_diagnosed")
    assert found.rows == record_of(folder, "fsdp_mlp").rows
    assert "own updates were not recorded: the parameters are spread over ranks" in found.notes


def test_a_rank_outside_of_the_group_is_refused(monkeypatch):
    distributed = torch.distributed
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_process_group_ranks", lambda group: [0, 1])
    monkeypatch.setattr(distributed, "get_rank", lambda: 2)
    with pytest.raises(coordcheck.CoordCheckError, match=r"rank 2, which group= does not hold \(ranks 0, 1\)"):
        recorder(make_mlp(), descent(make_mlp()), group=object())


def test_without_other_ranks_nothing_is_shared(monkeypatch):
    monkeypatch.setattr(ranks, "Exchange", None)  # would fail
    model = make_mlp()
    with recorder(model, descent(model), group=object()) as found:
        train(model, descent(model), examples())
    assert found.record.notes == ["width 64: recorded t=0..0 of t=0..3"]


def test_models_spread_over_ranks_are_refused_in_a_check(tmp_path):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    def build(width: int) -> tuple[nn.Module, Optimizer]:
        model = fully_shard(make_mlp(width), mesh=init_device_mesh("cpu", (1,)))
        return model, descent(model)

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with pytest.raises(coordcheck.CoordCheckError, match=r"DTensors, spread over ranks\. Return the plain model"):
            coordcheck.check(build, examples(), loss=F.cross_entropy)
    finally:
        torch.distributed.destroy_process_group()


def test_a_rank_that_dies_does_not_stop_the_other(tmp_path):
    pair(tmp_path, "one_rank_dies")
    (found,) = RunFolder(tmp_path / "one_rank_dies").records()
    assert "rank 1 handed in nothing" in found.notes[0]
    assert {row.step for row in found.rows} == set(range(STEPS + 1))


@pytest.mark.thorough
def test_a_store_that_goes_does_not_stop_the_training(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    _, printed = pair(tmp_path, "the_store_goes", store=f"tcp://127.0.0.1:{port}")
    assert "recording failed: DistNetworkError" in printed
    assert "trained to its end" in printed


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:])
