"""Run files: what is read is what was written, or an error that says why; a failed write costs nothing."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import pickle
import random
import shutil
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch.nn.functional as F
from conftest import pair_batch, power_law_records
from hypothesis import given, settings
from hypothesis import strategies as st

import coordcheck
from coordcheck.common.errors import CoordCheckError, RunFileError
from coordcheck.models import mlp
from coordcheck.runs import documents
from coordcheck.runs.documents import read_document
from coordcheck.runs.files import RunFolder, slug, write_document
from coordcheck.runs.names import same_label
from coordcheck.runs.records import RunKey, RunRecord
from coordcheck.runs.schemas import read_run

MUTANTS = 4000


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run file of a real, tiny run."""
    folder = tmp_path_factory.mktemp("real")
    options = {"widths": (16,), "seeds": 1, "steps": 1}
    coordcheck.check({"SP": mlp("SP")}, pair_batch(), loss=F.cross_entropy, save_to=folder, **options)
    return folder / "runs" / "SP" / "16-0.json"


@pytest.fixture
def record() -> RunRecord:
    return power_law_records({"fc": {"activation": 0.5, "change": 0.0}}, label="SP", widths=(16,), seeds=1)[0]


@pytest.fixture
def folder(tmp_path: Path, record: RunRecord) -> RunFolder:
    """A folder that holds one run and the experiment."""
    folder = RunFolder(tmp_path / "runs of today")
    folder.save_experiment({"axis": "width"}, {"SP": {"steps": "2"}}, [])
    folder.save(record)
    return folder


def sealed(body: bytes) -> bytes:
    """A file whose checksum is right, whatever the body (without its closing brace) holds."""
    return body + f',"sha256":"{hashlib.sha256(body).hexdigest()}"}}\n'.encode()


def document(content: str = "{}", kind: str = "run", schema: str = "1") -> bytes:
    return sealed(f'{{"format":"coordcheck {kind}","schema":{schema},"content":{content}'.encode())


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder with its bytes, hidden ones included."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def content_of(members: Iterator[tuple[str, Any]]) -> dict[str, Any]:
    """Whatever the content of a document is."""
    return {name: list(value) if isinstance(value, Iterator) else value for name, value in members}


def assert_refused(path: Path, match: str) -> None:
    with pytest.raises(RunFileError, match=match) as refused:
        read_document(path, "run", content_of)
    assert refused.value.exit_code == 4
    assert str(path) in str(refused.value)


# ---- what was written is read again


def test_a_saved_run_is_found_again(folder: RunFolder, record: RunRecord):
    assert folder.find(record.key) == record


def test_a_run_that_was_not_saved_is_not_found(folder: RunFolder):
    assert folder.find(RunKey("SP", 16, 1)) is None


def test_saving_again_replaces_the_run(folder: RunFolder, record: RunRecord):
    record.notes = ["second"]
    folder.save(record)
    assert folder.find(record.key).notes == ["second"]
    assert len(list(folder.records())) == 1


def test_records_come_by_label_width_and_seed(tmp_path: Path):
    saved = [
        run
        for label in ("µP", "SP")
        for run in power_law_records({"fc": {"activation": 0.0}}, label=label, widths=(128, 16, 64), seeds=2)
    ]
    for run in saved:
        RunFolder(tmp_path).save(run)
    by_key = sorted(saved, key=lambda run: (run.key.label, run.key.width, run.key.seed))
    assert list(RunFolder(tmp_path).records()) == by_key


def test_the_experiment_holds_settings_versions_and_machine(folder: RunFolder):
    experiment = folder.experiment()
    assert (experiment["criteria"], experiment["labels"]) == ({"axis": "width"}, {"SP": {"steps": "2"}})
    assert experiment["versions"]["coordcheck"] == coordcheck.__version__
    assert set(experiment["machine"]) == {"system", "processors"}


def test_a_folder_without_experiment_has_an_empty_one(tmp_path: Path):
    assert RunFolder(tmp_path).experiment() == {}


def test_the_last_member_is_the_checksum_of_all_bytes_before_it(real: Path):
    data = real.read_bytes()
    body, tail = data[: data.rindex(b',"sha256"')], json.loads(data)["sha256"]
    assert list(json.loads(data)) == ["format", "schema", "content", "sha256"]
    assert tail == hashlib.sha256(body).hexdigest()


def test_others_may_read_what_the_umask_lets_them(folder: RunFolder, record: RunRecord):
    before = os.umask(0o027)
    try:
        folder.save(record)
    finally:
        os.umask(before)
    assert folder.run_path(record.key).stat().st_mode & 0o777 == 0o640


def test_a_layer_takes_about_two_kilobytes(tmp_path: Path):
    layers = {f"blocks.{i}.attention.output": {"activation": 0.123, "mean_abs": 0.2, "change": 0.3} for i in range(200)}
    run = power_law_records(layers, widths=(1024,), seeds=1, steps=4, noise=lambda w, s, layer: 0.1)[0]
    RunFolder(tmp_path).save(run)
    assert 200 * 300 < RunFolder(tmp_path).run_path(run.key).stat().st_size < 200 * 2500


def test_a_real_run_file_is_small(real: Path):
    assert 500 < real.stat().st_size < 10_000


# ---- damage


@pytest.mark.fault(13)
def test_a_file_cut_at_any_byte_is_refused(real: Path, tmp_path: Path):
    data = real.read_bytes()
    cut = tmp_path / "cut.json"
    for length in range(len(data)):
        cut.write_bytes(data[:length])
        with pytest.raises(RunFileError) as refused:
            read_document(cut, "run", content_of)
        assert refused.value.exit_code == 4
    cut.write_bytes(data)
    assert read_document(cut, "run", content_of) == json.loads(data)["content"]


def mutants(data: bytes, number: int) -> Iterator[bytes]:
    """Copies of `data` with one to eight bytes overwritten, flipped, inserted, deleted or moved."""
    chance = random.Random(0)
    for _ in range(number):
        mutant = bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 8))):
            place, other = chance.randrange(len(mutant)), chance.randrange(len(mutant))
            change = chance.randrange(6)
            if change == 0:
                mutant[place] = chance.randrange(256)
            elif change == 1:
                mutant[place] ^= 1 << chance.randrange(8)
            elif change == 2:
                mutant[place] = chance.choice(b'0123456789{}[],:"- ')
            elif change == 3:
                mutant.insert(place, chance.randrange(256))
            elif change == 4:
                del mutant[place]
            else:
                mutant[place], mutant[other] = mutant[other], mutant[place]
        yield bytes(mutant)


@pytest.mark.fault(14)
def test_a_mutated_file_is_refused_or_still_the_same(real: Path, tmp_path: Path):
    folder, key, data = RunFolder(tmp_path), RunKey("SP", 16, 0), real.read_bytes()
    path = folder.run_path(key)
    path.parent.mkdir(parents=True)
    refused = 0
    for mutant in mutants(data, MUTANTS):
        path.write_bytes(mutant)
        try:
            folder.find(key)
        except RunFileError:
            refused += 1
        else:
            assert mutant == data
    assert refused > 0.97 * MUTANTS  # two bytes that change places may be the same: one mutant in a hundred


@settings(max_examples=200, deadline=None)
@given(body=st.binary(max_size=60))
def test_any_bytes_with_a_right_checksum_are_refused(tmp_path_factory: pytest.TempPathFactory, body: bytes):
    path = tmp_path_factory.mktemp("sealed") / "16-0.json"
    path.write_bytes(sealed(b'{"format":"coordcheck run","schema":1,"content":' + body))
    with contextlib.suppress(RunFileError):
        assert read_document(path, "run", read_run).to_json() == json.loads(path.read_bytes())["content"]


@pytest.mark.fault(15)
@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "is not a coordcheck file"),
        (b"{}", "is not a coordcheck file"),
        (b'{"width": 16}\n', "is not a coordcheck file"),
        (pickle.dumps({"format": "coordcheck run"}), "is not a coordcheck file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "is not a coordcheck file"),
        (b" " + document(), "is not a coordcheck file"),
        (document()[:-1], "is truncated: its checksum is missing"),
        (document() + b"\n", "is truncated: its checksum is missing"),
        (document().replace(b'"content":{}', b'"content":[]'), "is damaged: its checksum does not match its content"),
        (document(schema="2"), "has schema 2; this version reads up to 1. Upgrade coordcheck"),
        (document(schema='"1"'), "has schema '1'"),
        (document(schema="null"), "has schema None"),
        (document(schema="true"), "has schema True"),
        (document(kind="experiment"), "is not a coordcheck run file"),
        (document(kind="report"), "is not a coordcheck run file"),
        (document("[]"), "is not a coordcheck run file"),
        (document("null"), "is not a coordcheck run file"),
        (document('{"seconds":NaN}'), "is not strict JSON: no value at byte 59: NaN is not a JSON number"),
        (document('{"seconds":Infinity}'), "is not strict JSON: no value at byte 59: Infinity is not a JSON number"),
        (document('{"seconds":-Infinity}'), "is not strict JSON: no value at byte 59: -Infinity is not a JSON number"),
        (document('{"seconds":'), "is not strict JSON"),
        (document("9" * 5000), "is not strict JSON"),
        (document("[" * 900), "is not strict JSON"),
        (document("[" * 100_000), "holds more lists than values"),
        (document('{"seconds":1,}'), "is not strict JSON: expected a name"),
        (document('{"seconds":1 2}'), "is not strict JSON: expected '}'"),
        (document("{3:1}"), "is not strict JSON: expected a name"),
        (document('{"a":{"x":1,"x":2}}'), "is not strict JSON: .*'x' is there twice"),
        (document('{"a":[1,]}'), "is not strict JSON: no value"),
        (document('{"a":[1 2]}'), "is not strict JSON: expected ']'"),
        (document('{"a":"' + "x" * 2**23 + '"}'), "is not strict JSON: a piece at byte .* has more than"),
        (sealed(b'{"format":"coordcheck run","schema":1,"content":{"label":"\xff"}'), "is not strict JSON"),
    ],
    ids=lambda value: repr(value)[:60] if isinstance(value, bytes) else "",
)
def test_what_is_no_run_file_is_refused_with_the_reason(tmp_path: Path, data: bytes, match: str):
    path = tmp_path / "16-0.json"
    path.write_bytes(data)
    assert_refused(path, match)


def test_the_refused_documents_are_one_change_away_from_one_that_is_read(tmp_path: Path):
    path = tmp_path / "16-0.json"
    path.write_bytes(document('{"seconds":1.5}'))
    assert read_document(path, "run", content_of) == {"seconds": 1.5}


@pytest.mark.parametrize("number", ["1e400", "-1e400", "1" + "0" * 400, '"1.5"', "true"])
def test_a_number_that_is_none_is_refused_in_spite_of_its_checksum(folder: RunFolder, record: RunRecord, number: str):
    content = json.dumps(record.to_json() | {"seconds": 123.25}).replace("123.25", number)
    folder.run_path(record.key).write_bytes(document(content))
    with pytest.raises(RunFileError, match="is not a coordcheck run file: "):
        folder.find(record.key)


def test_a_folder_in_place_of_the_file_is_refused(folder: RunFolder, record: RunRecord):
    folder.run_path(record.key).unlink()
    folder.run_path(record.key).mkdir()
    assert_refused(folder.run_path(record.key), "is not a regular file")


def test_a_fifo_is_refused_and_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "16-0.json")
    assert_refused(tmp_path / "16-0.json", "is not a regular file")


def test_an_endless_device_is_refused(tmp_path: Path):
    (tmp_path / "16-0.json").symlink_to("/dev/zero")
    assert_refused(tmp_path / "16-0.json", "is not a regular file")


def test_a_missing_file_is_refused(tmp_path: Path):
    assert_refused(tmp_path / "16-0.json", "cannot be read: No such file")


def test_a_huge_file_is_refused_before_it_is_read(real: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(documents.LIMITS, "run", 100)
    monkeypatch.setattr(os, "fdopen", lambda *_: pytest.fail("it was read"))
    assert_refused(real, r"has \d+ bytes, more than any such file \(100\)")


def test_one_damaged_file_is_named_when_the_folder_is_loaded(folder: RunFolder, record: RunRecord):
    path = folder.run_path(RunKey("SP", 32, 0))
    path.write_bytes(folder.run_path(record.key).read_bytes()[:-20])
    with pytest.raises(RunFileError, match=r"is truncated.*the other run files are not affected") as refused:
        coordcheck.load(folder.path)
    assert str(path) in str(refused.value)


def test_a_damaged_file_is_an_error_without_a_cycle_of_causes(folder: RunFolder, record: RunRecord):
    folder.run_path(record.key).write_bytes(b"")
    with pytest.raises(RunFileError) as refused:
        folder.find(record.key)
    assert refused.value.__cause__ is not refused.value


def test_a_record_that_cannot_be_read_names_its_file(folder: RunFolder, record: RunRecord):
    write_document(folder.run_path(record.key), "run", record.to_json() | {"width": "16"})
    with pytest.raises(RunFileError, match="is not a coordcheck run file: ") as refused:
        folder.find(record.key)
    assert str(folder.run_path(record.key)) in str(refused.value)


def test_a_file_that_holds_another_run_than_its_name_says_is_refused(folder: RunFolder, record: RunRecord):
    other = RunKey("SP", 32, 0)
    shutil.copy(folder.run_path(record.key), folder.run_path(other))
    with pytest.raises(RunFileError, match="width 16"):
        folder.find(other)


def test_a_copied_file_is_not_counted_as_a_second_run(folder: RunFolder, record: RunRecord):
    shutil.copy(folder.run_path(record.key), folder.run_path(RunKey("SP", 32, 0)))
    with pytest.raises(RunFileError, match="width 16"):
        list(folder.records())


@pytest.mark.parametrize(
    ("prepare", "match"),
    [
        (lambda path: None, "there is no folder"),
        (lambda path: path.mkdir(), "has no run files in its folder runs"),
        (lambda path: path.write_text("runs"), "there is no folder"),
    ],
    ids=["missing", "empty", "a file"],
)
def test_a_folder_without_runs_is_bad_input(tmp_path: Path, prepare: object, match: str):
    prepare(tmp_path / "runs")
    with pytest.raises(CoordCheckError, match=match) as refused:
        list(RunFolder(tmp_path / "runs").records())
    assert refused.value.exit_code == 2


# ---- writing


def no_space(*arguments: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupt(*arguments: object, **options: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize("failure", [no_space, interrupt])
def test_a_write_that_fails_midway_leaves_everything_as_it_was(
    folder: RunFolder, record: RunRecord, monkeypatch: pytest.MonkeyPatch, name: str, failure: object
):
    before = contents(folder.path)
    monkeypatch.setattr(os, name, failure)
    with pytest.raises((CoordCheckError, KeyboardInterrupt)):
        folder.save(record)
    assert contents(folder.path) == before


def test_a_full_disk_is_told_with_its_path(folder: RunFolder, record: RunRecord, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(CoordCheckError, match=r"cannot write .*16-0\.json: No space left on device") as refused:
        folder.save(record)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    "write",
    [lambda folder, record: folder.probe(), lambda folder, record: folder.save(record)],
    ids=["probe", "save"],
)
def test_a_folder_below_a_file_cannot_be_written(tmp_path: Path, record: RunRecord, write: object):
    (tmp_path / "file").write_text("here")
    with pytest.raises(CoordCheckError, match=r"cannot write .*Give a folder that can be written") as refused:
        write(RunFolder(tmp_path / "file" / "runs"), record)
    assert type(refused.value) is CoordCheckError
    assert contents(tmp_path) == {tmp_path / "file": b"here"}


def test_a_probe_leaves_nothing_but_the_folder(tmp_path: Path):
    RunFolder(tmp_path / "new").probe()
    assert list((tmp_path / "new").iterdir()) == []


def test_nan_is_never_written(folder: RunFolder, record: RunRecord):
    before = contents(folder.path)
    record.seconds = math.nan
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.save(record)
    assert contents(folder.path) == before


# ---- names

AWKWARD = [
    *("SP", "sp", "\u00b5P", "muP", "mu P", "a b", "a-b", "a_b", "a/b", "a//b", "/a/b", "../x", "..", ".", "~", "x"),
    *("a\nb", "a\0b", "C:\\x", "con.", "\u202eab", "<b>", "$x$", "\U0001f600", "\u65e5\u672c", "x" * 41, "x" * 400),
]


@pytest.mark.parametrize(("label", "name"), [("SP", "SP"), ("\u00b5P", "muP"), ("\u03bcP", "muP"), ("a_1", "a_1")])
def test_plain_labels_are_their_own_folder_name(label: str, name: str):
    assert slug(label) == name


def test_different_labels_have_different_folders():
    assert [pair for pair in combinations(AWKWARD, 2) if slug(pair[0]) == slug(pair[1])] == []


@given(st.lists(st.text(alphabet="ab/.- _\u00b5\u03bcmu\u00e9A", min_size=1, max_size=5), min_size=2, max_size=6))
def test_equal_folders_mean_equal_labels(labels: list[str]):
    for one, other in combinations(labels, 2):
        assert (slug(one) == slug(other)) == (same_label(one) == same_label(other))


@given(st.text(max_size=60) | st.sampled_from(AWKWARD))
def test_a_folder_name_is_short_ascii_without_separators(label: str):
    name = slug(label)
    assert name.isascii()
    assert 0 < len(name) <= 50
    assert not set(name) - set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")


@pytest.mark.parametrize("label", AWKWARD, ids=ascii)
def test_a_run_never_leaves_its_folder_and_keeps_its_label(tmp_path: Path, record: RunRecord, label: str):
    folder = RunFolder(tmp_path / "a" / "b")
    record.key = RunKey(label, 16, 0)
    folder.save(record)
    assert folder.find(record.key) == record
    (path,) = contents(tmp_path)
    assert path.parent.parent == folder.path / "runs"


def test_both_mu_signs_are_one_run(tmp_path: Path, record: RunRecord):
    record.key = RunKey("\u00b5P", 16, 0)
    RunFolder(tmp_path).save(record)
    assert RunFolder(tmp_path).find(RunKey("\u03bcP", 16, 0)).rows == record.rows


def test_jobs_that_wrote_different_mu_signs_are_merged_under_one_label(tmp_path: Path, record: RunRecord):
    for width, label in ((16, "\u00b5P"), (32, "\u03bcP"), (64, "\u00b5P")):
        record.key = RunKey(label, width, 0)
        RunFolder(tmp_path).save(record)
    assert len(coordcheck.load(tmp_path).labels) == 1
