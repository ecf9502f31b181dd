"""The user's data: every kind of batch, what of it the probe takes, and that all widths see the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, islice
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import pair_batch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import coordcheck
from coordcheck.analysis.verdicts import Verdict
from coordcheck.common.errors import CoordCheckError
from coordcheck.models import mlp
from coordcheck.recording.batches import (
    IGNORED,
    PROBE_EXAMPLES,
    PROBE_SEQUENCES,
    PROBE_TOKENS,
    OfSeed,
    cached_batches,
    probes,
)
from coordcheck.training.fingerprints.fingerprint import fingerprint

WIDTHS = (32, 64, 128)
VOCABULARY, EXAMPLES, LENGTH = 24, 8, 24


class Language(nn.Module):
    """One block of attention and an MLP that takes what models of transformers take, and gives its own loss."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.up, self.down = nn.Linear(width, 2 * width, bias=False), nn.Linear(2 * width, width, bias=False)
        self.readout = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None) -> Any:
        """(example, token) -> the mean loss over the targets that are not ignored, of the next token."""
        x = self.embed(input_ids)
        heads = [part(x).unflatten(-1, (-1, 8)).transpose(1, 2) for part in (self.query, self.key, self.value)]
        seen = torch.ones(input_ids.shape[1], input_ids.shape[1], dtype=torch.bool).tril()
        if attention_mask is not None:  # a token always sees itself, or padding would have nothing to see
            seen = (seen & attention_mask[:, None, None].bool()) | torch.eye(len(seen), dtype=torch.bool)
        x = x + F.scaled_dot_product_attention(*heads, attn_mask=seen).transpose(1, 2).flatten(2)
        logits = self.readout(x + self.down(F.relu(self.up(x))))
        if labels is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()), "logits": logits}


def language(label: str, width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """In SP, or in µP for Adam."""
    model, m = Language(width), width / WIDTHS[0] if label == "µP" else 1
    matrices = [p for name, p in model.named_parameters() if name != "embed.weight"]
    for matrix in matrices:
        nn.init.normal_(matrix, std=matrix.shape[1] ** -0.5)
    with torch.no_grad():
        model.readout.weight.mul_(m**-0.5)
    groups = [{"params": matrices, "lr": 1e-3 / m}, {"params": [model.embed.weight], "lr": 1e-3}]
    return model, torch.optim.Adam(groups)


BUILDS = {label: partial(language, label) for label in ("SP", "µP")}
MATRICES = {f"{name}.weight" for name in ("query", "key", "value", "up", "down", "readout")}


def tokens(examples: int = EXAMPLES, length: int = LENGTH) -> Tensor:
    return torch.randint(1, VOCABULARY, (examples, length), generator=torch.Generator().manual_seed(0))


def everything() -> dict[str, Tensor]:
    return {"input_ids": tokens(), "labels": tokens()}


def answers_only() -> dict[str, Tensor]:
    """The targets of the first examples, and of the first half of the others, are ignored."""
    labels = tokens()
    labels[:4] = labels[:, : LENGTH // 2] = IGNORED
    return {"input_ids": tokens(), "labels": labels}


def padded(side: str) -> dict[str, Tensor]:
    """Ragged sequences of 0 to 24 tokens, filled up with token 0 on one side; the shortest come first."""
    kept = torch.tensor([0, 2, 3, 5, 9, 12, 20, 24])[:, None]
    position = torch.arange(LENGTH)
    mask = position < kept if side == "right" else position >= LENGTH - kept
    labels = tokens().masked_fill(~mask, IGNORED)
    return {"input_ids": tokens() * mask, "attention_mask": mask.long(), "labels": labels}


def nested() -> dict[str, Any]:
    """The same in a mapping inside a mapping, beside what is no tensor."""
    given = padded("left")
    return {"text": {"input_ids": given["input_ids"], "attention_mask": given["attention_mask"]}, "y": given["labels"]}


def nested_loss(model: nn.Module, batch: Any) -> Tensor:
    return model(**batch["text"], labels=batch["y"])["loss"]


def pair_loss(model: nn.Module, batch: Any) -> Tensor:
    """A criterion of the user's that ignores targets of its own accord."""
    ids, labels = batch
    return F.cross_entropy(model(ids)["logits"].flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


KINDS: dict[str, tuple[Callable[[], Any], Any]] = {
    "everything": (everything, None),
    "answers only": (answers_only, None),
    "padded on the right": (partial(padded, "right"), None),
    "padded on the left": (partial(padded, "left"), None),
    "nested": (nested, nested_loss),
    "a pair": (lambda: tuple(answers_only().values()), pair_loss),
}


@pytest.mark.parametrize("kind", KINDS)
def test_masks_and_ignored_targets_change_no_verdict(kind):
    batch, loss = KINDS[kind]
    report = coordcheck.diagnose(BUILDS, batch(), loss=loss, widths=WIDTHS)
    assert report.status["SP"].violated
    assert report.status["µP"] is Verdict.OK, str(report)
    culprits = report.culprits
    assert set(culprits["label"]) == {"SP"}
    assert set(culprits["parameter"]) == MATRICES
    assert not (report.parameters["verdict"] == Verdict.NOT_VISIBLE.value).any()


@pytest.mark.parametrize("kind", ["answers only", "padded on the left"])
def test_the_first_tokens_alone_would_tell_nothing(kind):
    """What the choice of the probe is for: without it, every parameter is unseen."""
    batch = {name: tensor[:PROBE_SEQUENCES, :PROBE_TOKENS] for name, tensor in KINDS[kind][0]().items()}
    report = coordcheck.diagnose(BUILDS["SP"], batch, widths=WIDTHS)
    assert not report.culprits["parameter"].any()


@pytest.mark.parametrize("kind", ["everything", "padded on the left"])
def test_a_whole_check_of_masked_tokens(kind):
    report = coordcheck.check(BUILDS, KINDS[kind][0](), widths=WIDTHS, seeds=2, steps=2)
    assert not report.missing
    assert report.status["SP"].violated
    assert not report.status["µP"].violated, str(report)
    assert not report.culprits["label"].eq("µP").any()


# What the probe takes


def learned(probe: dict[str, Tensor]) -> Tensor:
    """How many targets each example of a probe has, for a model that predicts the next token."""
    live = probe["labels"] != IGNORED
    if "attention_mask" in probe:
        live = live & (probe["attention_mask"] != 0)
    return live[:, 1:].sum(1)


@pytest.mark.parametrize("batch", [answers_only, partial(padded, "right"), partial(padded, "left")])
def test_a_probe_has_something_to_learn(batch):
    pieces, examples, whole = probes(batch())
    assert pieces["labels"].shape == (PROBE_SEQUENCES, PROBE_TOKENS)
    assert learned(pieces).tolist() == [PROBE_TOKENS - 1] * PROBE_SEQUENCES
    assert examples["labels"].shape == (PROBE_EXAMPLES, LENGTH)
    assert (learned(examples) > 0).all()
    assert fingerprint(whole) == fingerprint(batch())


def test_without_masks_it_is_the_first_of_everything():
    pieces, examples, _ = probes(everything())
    assert torch.equal(pieces["input_ids"], tokens()[:PROBE_SEQUENCES, :PROBE_TOKENS])
    assert torch.equal(examples["labels"], tokens()[:PROBE_EXAMPLES])


def test_parts_of_one_example_stay_together():
    pieces, examples, _ = probes(padded("left"))
    for probe in (pieces, examples):
        assert torch.equal(probe["labels"] == IGNORED, probe["attention_mask"] == 0)
        assert torch.equal(probe["input_ids"][probe["labels"] > 0], probe["labels"][probe["labels"] > 0])


def test_a_single_target_is_kept_and_not_the_first_of_its_piece():
    labels = torch.full((4, 30), IGNORED)
    labels[2, 17] = 5
    (pieces, _) = probes({"input_ids": tokens(4, 30), "labels": labels})
    assert learned(pieces).sum() == 1


def test_examples_whose_only_target_is_ignored_are_left_out():
    x, y = pair_batch(examples=12)
    y[:5] = IGNORED
    names = [f"image {row}" for row in range(12)]
    probe, _ = probes({"x": x, "y": y, "names": names, "temperature": 3.0})
    assert torch.equal(probe["x"], x[5:9])
    assert probe["names"] == names[5:9]
    assert probe["temperature"] == 3.0


def test_too_few_examples_with_targets_are_filled_up():
    x, y = pair_batch(examples=12)
    y[:] = IGNORED
    y[7] = 1
    probe, _ = probes((x, y))
    assert torch.equal(probe[0], x[[0, 1, 2, 7]])


def test_a_target_that_nothing_has_does_not_hide_the_others():
    """Of two tasks, one has no target in this batch."""
    labels = tokens()
    labels[:4] = IGNORED
    pieces, *_ = probes({"input_ids": tokens(), "labels": labels, "other": torch.full_like(labels, IGNORED)})
    assert (learned(pieces) > 0).all()


def test_what_cannot_be_cut_is_taken_whole():
    ragged = torch.nested.nested_tensor([torch.ones(n, 4) for n in range(1, 17)], layout=torch.jagged)
    (only,) = probes((ragged, torch.zeros(16)))
    assert only[0] is ragged


def test_a_mask_of_every_pair_of_tokens_leaves_out_what_it_hides():
    batch = padded("left")
    pairs_of_tokens = (batch["attention_mask"][:, None] * batch["attention_mask"][:, :, None])[:, None]
    probe, _ = probes({"x": torch.randn(EXAMPLES, LENGTH, 3), "attention_mask": pairs_of_tokens})
    assert torch.equal(probe["attention_mask"], pairs_of_tokens[1:5])


# The same data for every width


class Seen(NamedTuple):
    """A build of the reference MLP that notes the fingerprint of every input."""

    inputs: dict[int, list[str]]

    def __call__(self, width: int) -> Any:
        model, optimizer = mlp("SP", lr=3e-3)(width)
        noted = self.inputs.setdefault(width, [])
        model.register_forward_pre_hook(lambda _, args: noted.append(fingerprint(args[0])))
        return model, optimizer


def pairs(start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    return (pair_batch(seed) for seed in count(start))


class Stream(IterableDataset):
    """Examples without an end, and how many were asked for."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in pairs():
            for example in zip(x, y, strict=True):
                self.taken += 1
                yield example


def whole(size: int = 16, **options: Any) -> DataLoader[Any]:
    """A loader of five batches of 16."""
    data = [torch.cat(parts) for parts in zip(*islice(pairs(), 5), strict=True)]
    return DataLoader(TensorDataset(*data), batch_size=size, **options)


SEVERAL: dict[str, Callable[[], Any]] = {
    "loader": whole,
    "list": lambda: list(islice(pairs(), 5)),
    "tuple": lambda: tuple(islice(pairs(), 5)),
    "generator": pairs,
    "iterable data set": lambda: DataLoader(Stream(), batch_size=16),
}


def checked(batch: Any, **options: Any) -> tuple[coordcheck.Report, dict[int, list[str]]]:
    seen = Seen({})
    settings = {"loss": F.cross_entropy, "widths": (16, 32, 64), "seeds": 2, "steps": 2, "probe": None, **options}
    return coordcheck.check(seen, batch, **settings), seen.inputs


@pytest.mark.parametrize("kind", SEVERAL)
def test_each_step_has_its_batch_and_each_width_the_same(kind):
    report, inputs = checked(SEVERAL[kind]())
    expected = [fingerprint(x) for x, _ in islice(pairs(), 3)]
    assert inputs == dict.fromkeys((16, 32, 64), 2 * expected)  # of the passes on the first one nothing is left
    assert not report.missing
    assert report.records[0].settings["batch"] == checked(SEVERAL[kind]())[0].records[0].settings["batch"]
    changes = report.slopes[report.slopes["quantity"] == "change"]
    assert changes["slope"].notna().all()  # of the first batch: that of another one were no effect of training
    assert report.exit_code == 1


ONE: dict[str, Callable[[], Any]] = {
    "loader": lambda: whole(80),
    "list of one": lambda: [whole(80).dataset.tensors],
    "list of two tensors": lambda: list(whole(80).dataset.tensors),
    "function of the seed": lambda: lambda seed: whole(80),
    "function of nothing": lambda: lambda: whole(80).dataset.tensors,
}


@pytest.mark.parametrize("kind", ONE)
def test_one_batch_in_any_container_is_one_fixed_batch(kind):
    report, inputs = checked(ONE[kind]())
    expected, _ = checked(whole(80).dataset.tensors)
    assert len({one for seen in inputs.values() for one in seen}) == 1
    assert report.measurements.equals(expected.measurements)


@pytest.mark.fault(56)
def test_a_loader_that_shuffles_is_asked_once():
    loader = whole(shuffle=True)
    asked = []
    begin = type(loader).__iter__

    class Counted(type(loader)):
        def __iter__(self) -> Any:
            asked.append(1)
            return begin(self)

    loader.__class__ = Counted
    _, inputs = checked(loader)
    assert len(asked) == 1
    assert len({tuple(seen) for seen in inputs.values()}) == 1
    assert len(set(inputs[16])) == 3


@pytest.mark.fault(56)
def test_no_more_of_a_stream_is_taken_than_is_used():
    stream = Stream()
    checked(DataLoader(stream, batch_size=4))
    assert stream.taken == 3 * 4


def test_a_function_that_gives_other_data_each_time_is_asked_once_for_each_seed():
    stream = pairs()
    _, inputs = checked(lambda seed: next(stream))
    first, second = (fingerprint(x) for x, _ in islice(pairs(), 2))
    assert inputs == dict.fromkeys((16, 32, 64), [first] * 3 + [second] * 3)


def test_data_that_differ_between_widths_would_be_seen():
    """That the tests above can fail: a Trial brings each width its own."""
    stream, seen = pairs(), Seen({})

    def build(width: int) -> coordcheck.Trial:
        return coordcheck.Trial(*seen(width), batch=next(stream))

    coordcheck.check(build, loss=F.cross_entropy, widths=(16, 32, 64), seeds=1, steps=1, probe=None)
    assert len({tuple(each) for each in seen.inputs.values()}) == 3


def test_a_function_is_sent_to_workers_without_what_it_gave():
    given = cached_batches(lambda seed: pair_batch(seed), 1)
    assert isinstance(given, OfSeed)
    assert len(given(3).values) == 1
    assert given.__getstate__()["_given"] == {}


def test_other_data_are_another_setting():
    settings = [checked(whole(shuffle=True, generator=torch.Generator().manual_seed(s)))[0] for s in (0, 0, 1)]
    first, same, other = (report.records[0].settings["batch"] for report in settings)
    assert first == same != other


def test_batches_of_other_lengths_are_recorded():
    batches = [{"input_ids": tokens(4, n), "labels": tokens(4, n)} for n in (12, 9, 7)]
    report = coordcheck.check(BUILDS["SP"], batches, widths=WIDTHS, seeds=2, steps=2)
    assert not report.missing
    assert set(report.measurements["step"]) == {0, 1, 2}
    assert report.status["model"].violated  # by the diagnosis: on the first batch alone


def test_a_probe_of_the_users_own_is_what_the_diagnosis_sees():
    seen = Seen({})
    x, y = pair_batch(seed=5, examples=3)
    coordcheck.diagnose(seen, pair_batch(), loss=F.cross_entropy, widths=(16, 32, 64), seeds=1, probe=(x, y))
    assert {one for inputs in seen.inputs.values() for one in inputs} == {fingerprint(x)}


# What is refused


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (lambda: np.zeros((4, 64)), r"The batch holds numpy arrays\. Make tensors of them: torch.as_tensor"),
        (lambda: (np.zeros((4, 64)), np.zeros(4)), r"holds numpy arrays: \[0\], \[1\]\. Make tensors"),
        (lambda: (pair_batch()[0], np.zeros(16)), r"holds numpy arrays: \[1\]\. Make tensors.*TypeError"),
        (lambda: [(np.zeros((4, 64)), torch.zeros(4))], r"holds numpy arrays: \[0\]\. Make tensors.*TypeError"),
        (lambda: islice(pairs(), 2), "2 batches are too few for 2 steps: give 3"),
        (lambda: whole(32, drop_last=True), "2 batches are too few for 2 steps: give 3"),
        (lambda: ({"x": pair_batch()[0]}, pair_batch()[1]), r"\[batch\] of a tuple that does not start with a tensor"),
        (everything, "a batch \\(x, y\\), got {'input_ids': Tensor"),
    ],
    ids=["array", "arrays", "one array", "arrays in a list", "short", "short loader", "mapping first", "mapping"],
)
def test_what_is_no_batch_is_refused(batch, message):
    with pytest.raises(CoordCheckError, match=f"(?s){message}"):
        checked(batch())


@pytest.mark.parametrize("loss", [None, F.cross_entropy], ids=["default", "criterion"])
def test_what_a_model_says_of_its_own_is_not_taken_for_an_array(loss):
    def failing(*args: Any, **kwargs: Any) -> Tensor:
        raise TypeError("of the model itself")

    model = nn.Linear(4, 4)
    model.forward = failing
    batch = pair_batch() if loss else everything()
    with pytest.raises(CoordCheckError, match="TypeError: of the model itself") as error:
        coordcheck.check(lambda width: (model, torch.optim.SGD(model.parameters())), batch, loss=loss)
    assert "numpy" not in str(error.value)


def test_an_array_in_a_mapping_is_told():
    batch = everything()
    batch["input_ids"] = batch["input_ids"].numpy()
    with pytest.raises(CoordCheckError, match=r"The batch holds numpy arrays: \['input_ids'\]\. Make tensors of them"):
        coordcheck.check(BUILDS["SP"], batch)


def test_a_stream_ends_green_where_one_batch_does_and_red_where_one_does():
    """Both controls: each step trains on a batch of its own, and changes are those of the first."""
    stream = DataLoader(Stream(), batch_size=16)
    builds = {"SP": mlp("SP", lr=3e-3), "µP": mlp("µP", lr=3e-3)}
    report = coordcheck.check(builds, stream, loss=F.cross_entropy, widths=(64, 128, 256))
    assert report.status == {"SP": "blows up", "µP": "ok"}
    right = coordcheck.check(builds["µP"], stream, loss=F.cross_entropy, widths=(64, 128, 256))
    assert right.exit_code == 0
    alone = coordcheck.check(builds, stream, loss=F.cross_entropy, widths=(64, 128, 256), probe=None)
    assert alone.status == report.status
