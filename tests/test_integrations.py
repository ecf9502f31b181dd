"""Real short trainings of other packages, one process per width, and the trackers a report goes to."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import coordcheck
from coordcheck.integrations.callback import Recording
from coordcheck.reporting import trackers
from coordcheck.reporting.figures import KINDS
from coordcheck.reporting.report import Report
from coordcheck.runs.words import Outcome, Quantity, Status

WIDTHS = (16, 64, 256)


def hook_count(*owners: Any) -> int:
    """All hooks of all modules and optimizers, of every kind torch keeps."""
    modules = [m for owner in owners for m in (owner.modules() if isinstance(owner, nn.Module) else [owner])]
    return sum(len(v) for m in modules for name, v in vars(m).items() if "hooks" in name and isinstance(v, dict))


def run_script(script: str, folder: Path, *arguments: object, expected: int = 0) -> str:
    """A process of its own, with warnings as errors; what it wrote to stderr."""
    head = "import sys, warnings\nwarnings.simplefilter('error')\nimport torch\ntorch.set_num_threads(1)\n"
    done = subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(script), str(folder), *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false"),
        cwd=folder.parent,
        timeout=240,
    )
    assert done.returncode == expected, done.stderr
    return done.stderr


def assert_verdict_of(folder: Path, *labels: str) -> Report:
    """All of these are violated, from the run files alone: by `load` and on the command line."""
    report = coordcheck.load(folder)
    assert report.missing == []
    assert report.widths == list(WIDTHS)
    assert list(report.status) == list(labels)
    assert all(verdict.violated for verdict in report.status.values())
    growing = report.layers[report.layers["verdict"] == "blows up"]
    assert set(growing["label"]) == set(labels)
    assert {row.status for r in report.records for row in r.rows} <= {Status.OK, Status.ZERO, Status.INTEGER}
    assert {row.step for r in report.records for row in r.rows} == {0, 1, 2, 3, 4}
    page = folder.parent / "page.html"
    command = [sys.executable, "-m", "coordcheck", "report", str(folder), str(page)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "blows up" in page.read_text(encoding="utf-8")
    return report


# Importing


@pytest.mark.parametrize("statement", ["import coordcheck", "import coordcheck; coordcheck.Recorder"])
def test_importing_the_package_loads_no_framework(statement):
    names = ("transformers", "lightning", "pytorch_lightning", "accelerate", "tensorboard")
    code = f"{statement}\nimport sys\nprint(*[name for name in {names!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "", done.stderr


@pytest.mark.parametrize(
    ("module", "extra", "missing"),
    [
        ("transformers", "hf", ["transformers"]),
        ("lightning", "lightning", ["lightning", "lightning.pytorch", "pytorch_lightning"]),
    ],
)
def test_a_framework_that_is_not_installed_is_told_with_what_to_install(module, extra, missing):
    code = f"import sys\nfor n in {missing!r}: sys.modules[n] = None\nimport coordcheck.integrations.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "this callback needs" in done.stderr
    assert f'pip install "coordcheck[{extra}]"' in done.stderr
    assert f"\n{extra} = [" in (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")


# Hugging Face transformers

GPT2 = """
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed
from coordcheck.integrations.transformers import CoordCheckCallback

folder, seeds, widths = sys.argv[1], int(sys.argv[2]), [int(width) for width in sys.argv[3:]]
tokens = torch.randint(64, (32,), generator=torch.Generator().manual_seed(0))
example = {"input_ids": tokens, "labels": tokens}

def built(width, seed):
    set_seed(seed)
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=64, n_positions=32, n_embd=width, n_layer=2, n_head=4,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
    ))
    arguments = TrainingArguments(
        output_dir=folder + "/../output", per_device_train_batch_size=2, gradient_accumulation_steps=2, use_cpu=True,
        learning_rate=3e-3, lr_scheduler_type="constant", max_steps=20, report_to=[], save_strategy="no",
        logging_strategy="no", disable_tqdm=True, bf16=True, dataloader_pin_memory=False, seed=seed,
    )
    callback = CoordCheckCallback(width=width, seed=seed, label="SP", save_to=folder, stop=True)
    return callback, Trainer(model, arguments, train_dataset=[example] * 80, callbacks=[callback])

for width, seed in ((width, seed) for width in widths for seed in range(seeds)):
    callback, trainer = built(width, seed)
    trainer.train()
    assert trainer.state.global_step == 5, trainer.state.global_step
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in trainer.model.modules())
"""


@pytest.mark.thorough
def test_a_gpt2_at_three_widths_as_three_trainings_of_transformers(tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    run_script(GPT2, tmp_path / "runs", 2, *WIDTHS)
    report = assert_verdict_of(tmp_path / "runs", "SP")
    layers = {site.layer for site in report.records[0].sites}
    assert {"transformer.h.0.attn.c_attn", "lm_head", "(model):out.logits"} <= layers
    assert not any("#" in layer for layer in layers)
    assert all(info.learning_rate == 3e-3 and info.visible for r in report.records for info in r.parameters)


def test_a_trainer_on_a_stream_is_looked_at_on_a_probe_and_trains_as_without(tmp_path):
    from coordcheck.integrations.transformers import CoordCheckCallback

    def weights(callbacks: list[Any]) -> list[list[float]]:
        trainer = tiny_trainer(tmp_path, callbacks, max_steps=6, per_device_train_batch_size=1, bf16=True)
        trainer.train_dataset = [{"x": torch.full((4,), float(t)), "labels": torch.ones(3)} for t in range(8)]
        trainer.train()
        return [p.tolist() for p in trainer.model.parameters()]

    probe = {"x": torch.ones(2, 4), "labels": torch.ones(2, 3)}
    callback = CoordCheckCallback(width=8, probe=probe)
    assert weights([callback]) == weights([])
    assert callback.record is not None
    assert {row.status.value for row in callback.record.rows} <= {"ok", "zero"}
    assert {row.step for row in callback.record.rows if row.quantity.value == "change"} == {1, 2, 3, 4}
    assert not [note for note in callback.record.notes if "failed" in note]


def tiny_trainer(tmp_path: Path, callbacks: list[Any], **settings: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Regression(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            output = self.net(x)
            return {"loss": (output - labels).square().mean(), "logits": output}

    torch.manual_seed(0)
    example = {"x": torch.randn(4), "labels": torch.randn(3)}
    settings = {
        "max_steps": 3,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
    } | settings
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), dataloader_pin_memory=False, disable_tqdm=True, **settings
    )
    return transformers.Trainer(
        Regression(), arguments, train_dataset=[example] * 40, eval_dataset=[example] * 8, callbacks=callbacks
    )


def test_a_trainer_that_ends_before_the_last_step_is_told(tmp_path):
    pytest.importorskip("transformers")
    from coordcheck.integrations.transformers import CoordCheckCallback

    callback = CoordCheckCallback(width=8, save_to=tmp_path / "runs")
    trainer = tiny_trainer(tmp_path, [callback], eval_strategy="steps", eval_steps=1, eval_on_start=True)
    trainer.train()
    assert "recorded t=0..2 of t=0..4" in callback.record.notes[0]
    zero = {row.quantity for row in callback.record.rows if row.status is Status.ZERO}
    assert zero == {Quantity.INHERITED}  # nothing stands before the first layer
    assert {row.status for row in callback.record.rows} == {Status.OK, Status.ZERO}
    assert hook_count(trainer.model, trainer.optimizer.optimizer) == 0
    assert coordcheck.load(tmp_path / "runs").records[0].rows == callback.record.rows


def test_recording_changes_no_training_and_stops_by_itself(tmp_path):
    pytest.importorskip("transformers")
    from coordcheck.integrations.transformers import CoordCheckCallback

    bare = tiny_trainer(tmp_path, [], max_steps=6)
    bare.train()
    callback = CoordCheckCallback(width=8, steps=1, save_to=tmp_path / "runs")
    trainer = tiny_trainer(tmp_path, [callback], max_steps=6)
    trainer.train()
    pairs = zip(bare.model.state_dict().values(), trainer.model.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert trainer.state.global_step == 6
    rows = list(callback.record.rows)
    assert {row.step for row in rows} == {0, 1}
    trainer.train()  # what is recorded stays: the model is not at its initialisation any more
    assert callback.record.rows == rows


def test_an_exception_in_a_trainer_is_told_where_the_block_ends(tmp_path):
    transformers = pytest.importorskip("transformers")
    from coordcheck.integrations.transformers import CoordCheckCallback

    class Failing(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            raise ZeroDivisionError("in the loop")

    callback = CoordCheckCallback(width=8, save_to=tmp_path / "runs")
    trainer = tiny_trainer(tmp_path, [callback, Failing()])
    with pytest.raises(ZeroDivisionError), callback:
        trainer.train()
    assert hook_count(trainer.model, trainer.optimizer.optimizer) == 0
    assert callback.record.outcome is Outcome.FAILED
    assert coordcheck.load(tmp_path / "runs").missing[0].reason == "ZeroDivisionError: in the loop"


LEFT = """
from coordcheck.integrations.callback import Recording

class Owner: pass

owner, model = Owner(), torch.nn.Linear(4, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
recording = Recording(width=4, seed=0, label="SP", steps=4, save_to=sys.argv[1])
recording.start(owner, model, optimizer, step=0, writes=True)
model(torch.ones(2, 4)).mean().backward()
optimizer.step()
raise ZeroDivisionError("in the loop")
"""


def test_a_process_that_ends_with_an_exception_leaves_a_run_file_that_says_so(tmp_path):
    """A Trainer of transformers tells its callbacks nothing when it fails."""
    run_script(LEFT, tmp_path / "runs", expected=1)
    assert coordcheck.load(tmp_path / "runs").missing[0].reason == "ZeroDivisionError: in the loop"


def test_a_recording_whose_owner_is_gone_ends(tmp_path):
    class Owner:
        pass

    first, model = Owner(), nn.Linear(4, 4)
    recording = Recording(width=4, seed=0, label="SP", steps=4, save_to=tmp_path)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recording.start(first, model, optimizer, step=0, writes=True)
    hooks = hook_count(model, optimizer)
    second = Owner()  # a training that starts anew replaces the one that was left
    recording.start(second, model, optimizer, step=0, writes=True)
    assert hook_count(model, optimizer) == hooks > 0
    del first
    assert hook_count(model, optimizer) == hooks
    del second
    assert hook_count(model, optimizer) == 0
    assert "without telling its callbacks" in coordcheck.load(tmp_path).missing[0].reason


def test_a_training_that_is_resumed_is_told(tmp_path):
    model = nn.Linear(4, 4)
    recording = Recording(width=4, seed=0, label="SP", steps=4, save_to=None)
    recording.start(model, model, torch.optim.SGD(model.parameters(), lr=0.1), step=7, writes=True)
    recording.end()
    assert recording.record.notes[0] == "the training was resumed: t=0 is step 7, not the initialisation"


@pytest.mark.parametrize("settings", [{"width": 0}, {"width": 8, "steps": -1}, {"width": 8, "label": ""}])
@pytest.mark.parametrize("framework", ["transformers", "lightning"])
def test_arguments_are_refused_before_any_training(framework, settings):
    pytest.importorskip(framework)
    module = __import__(f"coordcheck.integrations.{framework}", fromlist=["CoordCheckCallback"])
    with pytest.raises(coordcheck.CoordCheckError):
        module.CoordCheckCallback(**settings)


def test_a_trainer_that_compiles_is_refused_when_it_begins(tmp_path):
    pytest.importorskip("transformers")
    from coordcheck.integrations.transformers import CoordCheckCallback

    trainer = tiny_trainer(tmp_path, [CoordCheckCallback(width=8)])
    trainer.args.torch_compile = True
    with pytest.raises(coordcheck.CoordCheckError, match="torch_compile=False"):
        trainer.train()


# Lightning

# of Lightning's own, about this small set-up
QUIET = r"""
for message in ("The '(train|val)_dataloader' does not have many workers", "The number of training batches",
                r"`isinstance\(treespec, LeafSpec\)` is deprecated"):
    warnings.filterwarnings("ignore", message)
"""

MLP = (
    QUIET
    + """
import lightning
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from coordcheck.integrations.lightning import CoordCheckCallback

folder, seeds, widths = sys.argv[1], int(sys.argv[2]), [int(width) for width in sys.argv[3:]]

class Net(lightning.LightningModule):
    def __init__(self, manual):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(32, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
        )
        self.loss = nn.CrossEntropyLoss()
        self.automatic_optimization = not manual

    def training_step(self, batch, index):
        loss = self.loss(self.net(batch[0]), batch[1])
        if self.automatic_optimization:
            return loss
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()

    def validation_step(self, batch, index):
        self.log("validation", self.loss(self.net(5 * batch[0]), batch[1]))

    def configure_optimizers(self):
        if self.automatic_optimization:
            return torch.optim.Adam(self.net.parameters(), lr=3e-3)
        first, rest = list(self.net[0].parameters()), list(self.net[2:].parameters())
        return [torch.optim.AdamW(first, lr=3e-3), torch.optim.Adam(rest, lr=3e-3)], []

generator = torch.Generator().manual_seed(0)
batch = TensorDataset(torch.randn(16, 32, generator=generator), torch.randint(10, (16,), generator=generator))
loader = DataLoader(batch, batch_size=16)
for width in widths:
    for label, seed in ((label, seed) for label in ("automatic", "manual") for seed in range(seeds)):
        lightning.seed_everything(seed, verbose=False)
        callback = CoordCheckCallback(width=width, seed=seed, label=label, save_to=folder, stop=True, module="net")
        trainer = lightning.Trainer(
            max_epochs=40, callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )
        module = Net(label == "manual")
        trainer.fit(module, loader, loader)
        assert trainer.current_epoch < 10, trainer.current_epoch
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
"""
)


@pytest.mark.thorough
def test_an_mlp_at_three_widths_as_three_trainings_of_lightning(tmp_path):
    pytest.importorskip("lightning")
    run_script(MLP, tmp_path / "runs", 2, *WIDTHS)
    report = assert_verdict_of(tmp_path / "runs", "automatic", "manual")
    for record in report.records:
        assert [site.layer for site in record.sites][:6] == ["0", "1", "2", "3", "4", "(model)"]
        assert {use.parameter for use in record.uses} >= {"0.weight", "2.weight", "4.weight"}
        assert record.settings["optimizer"] == ("Adam" if record.key.label == "automatic" else "AdamW, Adam")
        assert all(info.learning_rate == 3e-3 for info in record.parameters)


def test_lightning_on_a_stream_is_looked_at_on_a_probe_and_trains_as_without():
    from coordcheck.integrations.lightning import CoordCheckCallback

    def probe(module: nn.Module) -> torch.Tensor:  # whose forward is not the one that it trains
        return module.last(module.first(torch.ones(2, 4)).tanh())

    callback = CoordCheckCallback(width=8, probe=probe)
    weights = [[p.tolist() for p in lightning_fit(one, scale=True)[1].parameters()] for one in (callback, None)]
    assert weights[0] == weights[1]
    assert {row.status.value for row in callback.record.rows} <= {"ok", "zero"}
    assert {row.step for row in callback.record.rows if row.quantity.value == "change"} == {1, 2, 3, 4}


def lightning_fit(callback: Any, fail_at: int | None = None, scale: bool = False, **settings: Any) -> tuple[Any, Any]:
    lightning = pytest.importorskip("lightning")

    class Net(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            if index == fail_at:
                raise ZeroDivisionError("in the loop")
            return (self.last(self.first(batch[0]).tanh()) - batch[1]).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    lightning.seed_everything(0, verbose=False)
    factors = torch.arange(24.0)[:, None] if scale else 1.0
    batch = TensorDataset(torch.ones(24, 4) * factors, torch.ones(24, 3))
    options = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, callbacks=[callback] if callback else [], **options, **settings
    )
    module = Net()
    trainer.fit(module, DataLoader(batch, batch_size=2))
    return trainer, module


pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning"),
]


def test_lightning_that_calls_only_layers_is_recorded_micro_batch_by_micro_batch(tmp_path):
    pytest.importorskip("lightning")
    from coordcheck.integrations.lightning import CoordCheckCallback

    _, bare = lightning_fit(None, accumulate_grad_batches=2)
    callback = CoordCheckCallback(width=8, steps=2, save_to=tmp_path)
    trainer, module = lightning_fit(callback, accumulate_grad_batches=2)
    assert [site.layer for site in callback.record.sites] == ["first", "last"]
    assert {(row.step, row.status) for row in callback.record.rows} == {(t, Status.OK) for t in range(3)}
    assert all(map(torch.equal, bare.state_dict().values(), module.state_dict().values()))
    assert hook_count(module, *trainer.optimizers) == 0


@pytest.mark.parametrize(("fail_at", "outcome"), [(0, Outcome.FAILED), (2, Outcome.FAILED), (7, Outcome.FINISHED)])
def test_an_exception_in_lightning_is_told(tmp_path, fail_at, outcome):
    pytest.importorskip("lightning")
    from coordcheck.integrations.lightning import CoordCheckCallback

    callback = CoordCheckCallback(width=8, save_to=tmp_path)
    with pytest.raises(ZeroDivisionError):
        lightning_fit(callback, fail_at)
    record = coordcheck.load(tmp_path).records[0]
    assert record.outcome is outcome
    assert record.reason == ("ZeroDivisionError: in the loop" if outcome is Outcome.FAILED else "")


def test_lightning_that_ends_before_the_last_step_is_told(tmp_path):
    pytest.importorskip("lightning")
    from coordcheck.integrations.lightning import CoordCheckCallback

    callback = CoordCheckCallback(width=8, save_to=tmp_path)
    lightning_fit(callback, max_steps=2)
    assert "recorded t=0..1 of t=0..4" in callback.record.notes[0]


def test_a_module_that_is_not_there_is_refused():
    pytest.importorskip("lightning")
    from coordcheck.integrations.lightning import CoordCheckCallback

    with pytest.raises(coordcheck.CoordCheckError, match="module='net' is no module of Net"):
        lightning_fit(CoordCheckCallback(width=8, module="net"))


def test_the_other_name_of_lightning_is_used_where_it_is_the_one_imported(monkeypatch):
    pytest.importorskip("lightning")
    from coordcheck.integrations import lightning

    other = ModuleType("pytorch_lightning")
    other.Callback = type("Callback", (), {})
    monkeypatch.setitem(sys.modules, "pytorch_lightning", other)
    assert lightning._callback() is sys.modules["lightning.pytorch"].Callback
    monkeypatch.delitem(sys.modules, "lightning.pytorch")
    assert lightning._callback() is other.Callback


# Loggers

LOGS = pytest.mark.parametrize("log", [trackers.log, Report.log], ids=["function", "method"])


@LOGS
def test_a_report_in_a_real_tensorboard_file(tmp_path, report, log):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        log(report, writer, step=7)
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    assert {event.step for tag in found.Tags()["scalars"] for event in found.Scalars(tag)} == {7}
    assert found.Scalars("coordcheck/exit_code")[0].value == 1
    assert found.Scalars("coordcheck/SP/violated_layers")[0].value > 0
    assert found.Scalars("coordcheck/muP/violated_layers")[0].value == 0
    assert found.Scalars("coordcheck/SP/culprits")[0].value > 0
    assert set(found.Tags()["images"]) == {f"coordcheck/{kind}" for kind in KINDS}
    text = found.Tensors("coordcheck/report/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "VIOLATED" in text


class Calls:
    """What a fake was called with."""

    def __init__(self) -> None:
        self.made: list[tuple[str, dict[str, Any]]] = []

    def note(self, name: str, arguments: dict[str, Any]) -> None:
        self.made.append((name, {k: v for k, v in arguments.items() if k != "self"}))

    def of(self, name: str) -> list[dict[str, Any]]:
        return [arguments for made, arguments in self.made if made == name]


def fake_package(monkeypatch: pytest.MonkeyPatch, name: str, calls: Calls, **extra: Any) -> ModuleType:
    """wandb 0.31 or trackio 0.43, as far as it is used: the parameters of their functions, and what they refuse."""
    package = ModuleType(name)

    class Table:
        def __init__(
            self,
            columns=None,
            data=None,
            dataframe=None,
            rows=None,
            optional=True,
            allow_mixed_types=False,
            log_mode=None,
        ):
            assert all(
                value is None or type(value) in (str, int, float, bool) for value in dataframe.to_numpy().ravel()
            )
            self.dataframe = dataframe

    class Image:
        def __init__(self, data_or_path, mode=None, caption=None):
            self.path = data_or_path

    class Run:
        def log(self, data, step=None, commit=None):
            sizes = {key: os.path.getsize(value.path) for key, value in data.items() if isinstance(value, Image)}
            calls.note("log", {"data": data, "step": step, "sizes": sizes})

    for one in (Table, Image, Run):
        one.__module__ = f"{name}.inside"
        setattr(package, one.__name__, one)
    for key, value in extra.items():
        setattr(package, key, value)
    package.log = Run().log
    monkeypatch.setitem(sys.modules, name, package)
    return package


@LOGS
@pytest.mark.parametrize(("name", "text"), [("wandb", "Html"), ("trackio", "Markdown")])
@pytest.mark.parametrize("whole", [False, True], ids=["run", "module"])
def test_a_report_in_a_run_of_wandb_or_trackio(monkeypatch, report, name, text, whole, log):
    calls = Calls()
    package = fake_package(monkeypatch, name, calls, **{text: lambda data: (text, data)})
    log(report, package if whole else package.Run(), step=3)
    (call,) = calls.of("log")
    assert call["step"] == 3
    assert set(call["sizes"]) == {f"coordcheck/{kind}" for kind in KINDS}
    assert min(call["sizes"].values()) > 1000
    assert len(call["data"]["coordcheck/verdicts"].dataframe) == len(report.verdicts)
    assert call["data"]["coordcheck/report"][0] == text
    assert call["data"]["coordcheck/exit_code"] == 1.0


class Client:
    """MlflowClient of mlflow 3.17, as far as it is used."""

    def __init__(self) -> None:
        self.calls = Calls()

    def log_metric(self, run_id, key, value, timestamp=None, step=None, synchronous=None):
        self.calls.note("log_metric", locals())

    def log_text(self, run_id, text, artifact_file):
        self.calls.note("log_text", locals())

    def log_table(self, run_id, data, artifact_file):
        self.calls.note("log_table", locals())

    def log_figure(self, run_id, figure, artifact_file, *, save_kwargs=None):
        self.calls.note("log_figure", locals())


def fake_mlflow(client: Client) -> ModuleType:
    """The module mlflow 3.17, as far as it is used."""
    module = ModuleType("mlflow")

    def log_metrics(metrics, step=None, synchronous=None, run_id=None):
        for key, value in metrics.items():
            client.log_metric("active", key, value, step=step)

    module.log_metrics = log_metrics
    module.log_text = lambda text, artifact_file, run_id=None: client.log_text("active", text, artifact_file)
    module.log_table = lambda data, artifact_file, run_id=None: client.log_table("active", data, artifact_file)
    module.log_figure = lambda figure, artifact_file, *, save_kwargs=None: client.log_figure(
        "active", figure, artifact_file
    )
    return module


@LOGS
@pytest.mark.parametrize(
    ("target", "run"),
    [
        (fake_mlflow, "active"),
        (lambda client: (client, "r1"), "r1"),
        (lambda client: SimpleNamespace(experiment=client, run_id="r2"), "r2"),
    ],
    ids=["module", "client", "Lightning's logger"],
)
def test_a_report_in_mlflow(report, target: Callable[[Client], Any], run, log):
    client = Client()
    log(report, target(client), step=2)
    assert {arguments["run_id"] for _, arguments in client.calls.made} == {run}
    assert [c["artifact_file"] for c in client.calls.of("log_text")] == ["coordcheck/2/report.txt"]
    assert [c["artifact_file"] for c in client.calls.of("log_table")] == ["coordcheck/2/verdicts.json"]
    assert {c["artifact_file"] for c in client.calls.of("log_figure")} == {f"coordcheck/2/{kind}.png" for kind in KINDS}
    metrics = {c["key"]: c["value"] for c in client.calls.of("log_metric")}
    assert metrics["coordcheck/exit_code"] == 1.0
    assert metrics["coordcheck/SP/violated_layers"] > 0


@LOGS
@pytest.mark.parametrize(
    "to",
    [None, 3, "runs", object(), {}, Client(), logging.getLogger("x"), sys, (1, 2)],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_tracker_is_refused_with_what_is_accepted(report, to, log):
    with pytest.raises(coordcheck.CoordCheckError, match=r"SummaryWriter.*wandb.*mlflow.*trackio"):
        log(report, to)


@LOGS
def test_a_tracker_that_is_down_is_told_once_and_raises_nothing(report, caplog, log):
    class Down(Client):
        def log_metric(self, *args: Any, **kwargs: Any) -> None:
            raise ConnectionError("no route to the server")

    client = Down()
    log(report, (client, "r"))
    assert [record.message for record in caplog.records] == [
        "the report was not logged, or not wholly, to tuple: ConnectionError: no route to the server"
    ]
    assert client.calls.made == []
