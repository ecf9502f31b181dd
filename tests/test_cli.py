"""The command line, in process and as a program: output, files, exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import power_law_records

import coordcheck
from coordcheck import Report
from coordcheck.analysis.verdicts import Verdict
from coordcheck.cli.main import in_flags, main
from coordcheck.cli.options import parsed

USER_FILE = """
import torch
import torch.nn.functional as F
from coordcheck.models import mlp

build_sp = mlp("SP", lr=3e-3)
build_mup = mlp("µP", lr=3e-3)
batch = torch.randn(16, 64, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 10

def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])

def broken(width):
    raise ValueError("no such width")

def build_any(width, lr):
    return mlp("µP", lr=lr)(width)

def fails_at_128(width):
    if width == 128:
        raise ValueError("128 is not supported")
    return build_mup(width)
"""
WIDTHS = ["--widths", "64", "128", "256"]


@pytest.fixture
def user_folder(tmp_path, monkeypatch):
    """A folder with the user's file, as the current one; its module is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "train.py").write_text(USER_FILE, encoding="utf-8")
    yield tmp_path
    sys.modules.pop("train", None)


def run(*targets: str, options: tuple[str, ...] = ()) -> int:
    return main(["run", *targets, "--batch", "train.py:batch", "--loss", "train.py:loss", *WIDTHS, *options])


@pytest.mark.parametrize(
    ("targets", "code", "text"),
    [
        (["train.py:build_sp"], 1, "build_sp: VIOLATED"),
        (["train.py:build_mup"], 0, "build_mup: OK"),
        (["SP=train.py:build_sp", "µP=train:build_mup"], 1, "µP: OK"),
        (["train.py:fails_at_128"], 3, "128 is not supported"),
    ],
)
def test_run_says_the_verdict_and_exits_with_its_code(user_folder, capsys, targets, code, text):
    assert run(*targets) == code
    assert text in capsys.readouterr().out


def test_a_criterion_of_torch_is_a_loss(user_folder, capsys):
    options = ["--batch", "train.py:batch", "--loss", "torch.nn.functional:cross_entropy", *WIDTHS]
    assert main(["run", "train.py:build_mup", *options]) == 0


def test_run_files_are_shown_and_drawn_without_the_model(user_folder, capsys):
    assert run("SP=train.py:build_sp", options=("--save-to", "runs", "--figure", "a.svg")) == 1
    told = capsys.readouterr().out
    (user_folder / "train.py").unlink()
    assert main(["show", "runs"]) == 1
    assert capsys.readouterr().out + "wrote a.svg\n" == told
    assert main(["figure", "runs", "b.png", "--kind", "slopes"]) == 0
    assert (user_folder / "b.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (user_folder / "a.svg").read_text(encoding="utf-8")


def test_json_is_strict_and_complete(user_folder, capsys):
    assert run("train.py:build_sp", options=("--format", "json")) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["exit_code"], report["status"]) == (1, {"build_sp": "blows up"})
    assert {row["layer"] for row in report["verdicts"] if row["role"] is None} == {
        "input",
        "hidden.0",
        "hidden.1",
        "readout",
    }


def test_diagnose_names_the_culprits(user_folder, capsys):
    options = ["--batch", "train.py:batch", "--loss", "torch.nn.functional:cross_entropy"]
    assert main(["diagnose", "train.py:build_sp", *options, "--figure", "exponents.png"]) == 1
    printed = capsys.readouterr().out
    assert "build_sp: VIOLATED  3 of 8 parameters to blame (exponents of SP)" in printed
    assert "hidden.{0,1}.weight (2)" in printed
    assert (user_folder / "exponents.png").exists()
    assert main(["diagnose", "train.py:build_sp", *options, "--expect", "sp"]) == 0
    assert main(["diagnose", "train.py:build_mup", *options]) == 0
    assert main(["diagnose", "train.py:build_sp", *options, "--expect", "spp"]) == 2


FIX = ["fix", "train.py:build_sp", "--batch", "train.py:batch", "--loss", "train.py:loss", "-q"]


def test_fix_writes_rules_and_code(user_folder, capsys):
    assert main([*FIX, "-o", "mup.json", "--code", "mup.py"]) == 0
    printed = capsys.readouterr().out
    assert "before: VIOLATED" in printed
    assert "after: OK" in printed
    assert "wrote mup.json, mup.py" in printed
    fix = coordcheck.Fix.load(user_folder / "mup.json")
    assert (user_folder / "mup.py").read_text(encoding="utf-8") == fix.to_code()
    assert set(fix.rules["parameter"]) == {"hidden.0.weight", "hidden.1.weight", "readout.weight"}


def test_fix_answers_machines(user_folder, capsys):
    assert main([*FIX, "--format", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["status"] == {"before": "learns too fast", "after": "ok"}
    assert {rule["lr"] for rule in answer["rules"]} == {-1.0}
    assert main([*FIX, "--format", "github"]) == 0
    assert "::group::coordcheck" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--base", "0"], "--base must be an integer of 1 or more"),
        (["b=train.py:build_mup"], "fix takes one model, got 2"),
    ],
)
def test_what_fix_cannot_do_is_bad_input(user_folder, capsys, options, told):
    assert main([FIX[0], *options, *FIX[1:]] if "=" in options[0] else [*FIX, *options]) == 2
    assert told in capsys.readouterr().err


def test_fix_draws_both(user_folder, capsys):
    assert main([*FIX, "--widths", "32", "64", "128", "--figure", "both.svg", "--html", "both.html"]) == 0
    assert "wrote both.svg, both.html" in capsys.readouterr().out


def test_jobs_find_the_users_file(user_folder, capsys):
    assert run("train.py:build_mup", options=("--jobs", "2", "--seeds", "1")) in (0, 3)
    assert "layers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "train.py:nothing"], 2, "'train.py' has no 'nothing'"),
        (["run", "missing.py:build"], 2, "there is no file 'missing.py'"),
        (["run", "no_such_module:build"], 2, "cannot import 'no_such_module'"),
        (["run", "train.py"], 2, "must be MODULE:NAME or FILE.py:NAME"),
        (["run", "train.py:build_mup"], 2, "there is no batch"),
        (["run", "train.py:broken", "--batch", "train.py:batch"], 2, "every run failed"),
        (
            ["run", "train.py:build_mup", "--widths", "64,128", "x"],
            2,
            "--widths must be positive integers, got 'x'. Pass --widths 64 128 256.",
        ),
        (
            ["run", "train.py:build_mup", "--batch", "train.py:batch"],
            2,
            "no --loss was given and the batch is (Tensor[16, 64], Tensor[16]). For a pair (x, y) pass --loss torch.nn",
        ),
        (["show", "nowhere"], 2, "there is no folder nowhere"),
        (["show", "."], 2, "has no run files in its folder runs"),
    ],
)
def test_bad_input_is_told_on_stderr(user_folder, capsys, arguments, code, message):
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


@pytest.mark.fault(49)
@pytest.mark.parametrize("command", ["run", "diagnose"])
def test_too_few_widths_are_refused_before_the_training(user_folder, capsys, command):
    options = ["--batch", "train.py:batch", "--loss", "train.py:loss", "--widths", "64", "128"]
    assert main([command, "train.py:broken", *options]) == 2
    told = capsys.readouterr().err
    assert "a verdict needs at least 3 distinct widths, got 2 (64, 128). Pass --widths 64 128 256, or --save-to" in told


def part(width: str, seed: str, *options: str) -> int:
    """One job of a cluster."""
    places = ["--batch", "train.py:batch", "--loss", "train.py:loss", "--save-to", "shared"]
    return main(["run", "train.py:build_mup", "--widths", width, "--seeds", seed, *places, *options])


def test_jobs_of_a_cluster_run_a_part_each(user_folder, capsys):
    for width in ("64", "128", "256"):
        for seed in ("0,", "3,"):
            assert part(width, seed) == 0
    told = capsys.readouterr().out
    assert "1 of the 1 runs of this part are saved, and 1 of the 1 runs that shared is to hold so far." in told
    assert "and 6 of the 6 runs that shared is to hold so far.\nWhen all are: coordcheck show shared\n" in told
    report = coordcheck.load("shared")
    assert (report.status, {r.key.seed for r in report.records}) == ({"build_mup": Verdict.OK}, {0, 3})


def test_a_part_that_fails_or_is_lost_is_missed(user_folder, capsys):
    (user_folder / "train.py").write_text(
        USER_FILE.replace("return build_mup", "return mlp()") + "build_mup = fails_at_128\n", encoding="utf-8"
    )
    assert part("64", "0,") == 0
    assert part("128", "0,") == 2
    assert "128 is not supported" in capsys.readouterr().err
    next(Path("shared/runs").rglob("64-0.json")).unlink()
    assert part("256", "0 1") == 0
    told = capsys.readouterr().out
    assert "2 of the 2 runs of this part are saved, and 2 of the 4 runs that shared is to hold so far." in told


@pytest.mark.fault(51)
def test_parts_of_a_factory_that_ignores_the_width_are_refused_together(user_folder, capsys):
    (user_folder / "train.py").write_text(USER_FILE + "def build_mup(w): return mlp()(64)\n", encoding="utf-8")
    assert part("64", "0,") == 0
    assert part("128", "0,") == 2
    assert "equal parameter shapes at widths 64 and 128" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "seeds"),
    [(["2"], {0, 1}), (["0,3"], {0, 3}), (["0", "3"], {0, 3}), (["0, 3"], {0, 3}), (["3,"], {3})],
)
@pytest.mark.parametrize("widths", [["8,16,32"], ["8", "16", "32"], ["8, 16", "32"]])
def test_lists_have_commas_or_blanks(user_folder, capsys, typed, seeds, widths):
    options = ["--widths", *widths, "--seeds", *typed, "--format", "json"]
    assert main(["plan", "train.py:build_mup", *options]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["widths"], set(told["seeds"])) == ([8, 16, 32], seeds)


@pytest.mark.fault(48)
@pytest.mark.parametrize(
    ("option", "words", "message"),
    [
        ("--widths", ["64", "wide"], "--widths must be positive integers, got 'wide'"),
        ("--widths", ["64", "-128"], "--widths must be positive integers, got '-128'"),
        ("--widths", ["0,64"], "--widths must be positive integers, got '0'"),
        ("--widths", ["nan", "64"], "--widths must be positive integers, got 'nan'"),
        ("--widths", ["True"], "--widths must be positive integers, got 'True'"),
        ("--widths", [","], "there are no widths. Pass --widths 64 128 256."),
        ("--seeds", ["0"], "--seeds must be how many (1 or more, such as 3) or which"),
        ("--seeds", ["1.5"], "got '1.5'"),
        ("--seeds", ["-1"], "got -1"),
        ("--seeds", [","], "got []"),
    ],
)
def test_numbers_that_are_none_are_refused(user_folder, capsys, option, words, message):
    assert main(["plan", "train.py:build_mup", option, *words]) == 2
    assert message in capsys.readouterr().err


def test_several_folders_are_shown_and_labels_of_both_told_apart(user_folder, capsys):
    for folder in ("before", "after"):
        assert run("it=train.py:build_mup", f"{folder[0]}=train.py:build_mup", options=("--save-to", folder)) == 0
    capsys.readouterr()
    assert main(["show", "before", "after"]) == 0
    printed = capsys.readouterr().out
    assert re.findall("^(.*): OK", printed, flags=re.M) == ["it (before)", "b", "it (after)", "a"]
    assert main(["show", "before", "after", "--labels", "a,b", "it (before)"]) == 0
    assert re.findall("^(.*): OK", capsys.readouterr().out, flags=re.M) == ["a", "b", "it (before)"]
    assert main(["figure", "before", "after", "both.svg", "--labels", "b", "a"]) == 0
    assert main(["report", "before", "after", "both.html", "--labels", "b"]) == 0
    assert "both.html" in capsys.readouterr().out
    assert main(["show", "before", "--labels", "bb"]) == 2
    assert "there is no label 'bb' (did you mean 'b'?); known are 'it', 'b'." in capsys.readouterr().err


def test_labels_keep_the_order_in_which_they_were_given(user_folder, capsys):
    labels = ["z=train.py:build_mup", "a=train.py:build_mup"]
    assert run(*labels, options=("--save-to", "runs", "--seeds", "2")) in (0, 3)
    assert main(["show", "runs"]) in (0, 3)
    assert re.findall("^([az]): ", capsys.readouterr().out, flags=re.M) == ["z", "a", "z", "a"]


def test_all_notes_are_printed_when_they_are_wanted(user_folder, capsys):
    records = power_law_records({"fc": {"activation": 0.0, "change": 0.0}})
    records[0].notes = [f"note number {number}" for number in range(12)]
    coordcheck.Report(records).save("runs")
    assert main(["show", "runs"]) == 0
    assert "note: and 4 more: report.notes, --notes\n" in capsys.readouterr().out
    assert main(["show", "runs", "-v"]) == 0
    assert "note number 11\n" in capsys.readouterr().out


def test_the_rows_that_a_table_leaves_out_are_where_it_says(user_folder, capsys):
    layers = {f"layer-{number}": {"activation": 0.0, "change": 0.5 + number / 10} for number in range(11)}
    coordcheck.Report(power_law_records(layers)).save("runs")
    assert main(["show", "runs"]) == 1
    (told,) = re.findall("and 3 more: report.verdicts, (.*)", capsys.readouterr().out)
    assert main(["show", "runs", *told.split()]) == 1
    assert "layer-0" in Path("page.html").read_text(encoding="utf-8")
    for command in ("run", "diagnose"):
        assert parsed([command, "train.py:build", *told.split()]).html == Path("page.html")


def test_a_damaged_run_file_exits_4(user_folder, capsys):
    assert run("train.py:build_mup", options=("--save-to", "runs")) == 0
    path = next(Path("runs/runs").rglob("64-0.json"))
    path.write_bytes(path.read_bytes()[:-40])
    assert main(["show", "runs"]) == 4
    assert "is truncated" in capsys.readouterr().err


def test_a_module_that_raises_is_told(user_folder, capsys):
    (user_folder / "bad_module.py").write_text("1 / 0\n")
    assert main(["run", "bad_module.py:build"]) == 2
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_usage_errors_exit_2(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["run"])
    assert stop.value.code == 2
    capsys.readouterr()


@pytest.fixture(scope="module")
def saved_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "runs"
    slopes = {f"blocks.{n}.fc": {"activation": 0.0, "change": float(n == 1)} for n in range(3)}
    Report(power_law_records(slopes, steps=9, seeds=1)).save(folder)
    return folder


@pytest.mark.parametrize(
    "options",
    [
        ["--steps", "0,1", "9"],
        ["--layers", "blocks.0.fc,blocks.2.*", "--figsize", "7x3"],
        ["--kind", "slopes", "--steps", "9", "--figsize", "6,3"],
    ],
)
def test_a_figure_shows_what_is_asked_for(saved_runs, tmp_path, options, monkeypatch):
    seen = []
    monkeypatch.setattr("coordcheck.reporting.figures.save_figure", lambda figure, path: seen.append(figure))
    assert main(["figure", str(saved_runs), str(tmp_path / "a.svg"), *options]) == 0
    [figure] = seen
    if "--figsize" in options:
        assert tuple(figure.get_size_inches()) == pytest.approx((7, 3) if "7x3" in options else (6, 3))
    if "0,1" in options:
        titles = [text.get_text() for text in figure.texts if text.get_text().startswith("t = ")]
        assert titles == ["t = 0 (init)", "t = 1", "t = 9"]
    if "--layers" in options:
        drawn = {line.get_label() for line in figure.axes[0].lines}
        assert {name for name in drawn if name.startswith("blocks")} == {"blocks.0.fc", "blocks.2.fc"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0,x"], "the steps of a figure are numbers of updates, such as 0,1,4, got '0,x'"),
        (["--steps", "12"], "--steps has 12, which was not measured for this figure; known steps are 0, 1"),
        (["--layers", "block"], "--layers names 'block', which matches none of 3 names"),
        (
            ["--figsize", "1x1"],
            "--figsize 1.0x1.0 inches leaves no room for 6 panels beside their texts",
        ),
    ],
)
def test_what_a_figure_cannot_show_is_bad_input(saved_runs, tmp_path, capsys, options, message):
    assert main(["figure", str(saved_runs), str(tmp_path / "a.svg"), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_size_of_one_number_is_refused(saved_runs, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["figure", str(saved_runs), str(tmp_path / "a.svg"), "--figsize", "7"])
    assert "must be width and height in inches, such as 7x3, got '7'" in capsys.readouterr().err


def test_steps_of_the_figure_that_no_run_makes_are_refused_before_any_training(user_folder, capsys):
    options = ("--figure", "a.png", "--figure-steps", "0,5", "--steps", "2")
    assert run("train.py:build_sp", options=options) == 2
    assert "--figure-steps has 5, and 2 updates are made: see --steps." in capsys.readouterr().err


@pytest.mark.parametrize("command", ["demo", "plan", "run", "diagnose", "fix", "show", "figure", "report"])
def test_help_shows_an_example(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"example:\n  coordcheck {command}" in capsys.readouterr().out


def program(*arguments: str, **options) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "coordcheck", *arguments], capture_output=True, timeout=240, check=False, **options
    )


def test_the_version_is_the_packages():
    assert program("--version").stdout.decode().strip() == f"coordcheck {coordcheck.__version__}"


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.fault(62)
@pytest.mark.parametrize("ascii_only", [{"PYTHONIOENCODING": "ascii"}, ASCII])
def test_a_terminal_without_signs_gets_letters(tmp_path, report, ascii_only):
    report.save(tmp_path)
    done = program("show", str(tmp_path), "--labels", "µP", "SP", env={**os.environ, **ascii_only})
    assert done.returncode == 1, done.stderr
    told = done.stdout.decode("ascii")
    assert told.startswith("muP: OK")
    assert re.search(r"hidden\.\{0,1\}\.weight \(2\) +learns too fast +lr x m\^-1", told)
    assert re.search(r" \+\d\.\d\d \+- 0\.\d\d", told)
    assert "64 -> 256" in told
    assert "?" not in told


@pytest.mark.fault(62)
def test_a_label_typed_where_the_locale_is_c_is_the_one_that_was_meant(tmp_path):
    done = program("plan", "µP=coordcheck.checks.demo:build_mup", "--format", "json", env={**os.environ, **ASCII})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["labels"] == ["µP"]


def test_a_reader_that_leaves_early_is_no_error(tmp_path, report):
    report.save(tmp_path)
    command = f"{sys.executable} -m coordcheck show {tmp_path} | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=120, check=False)
    assert done.stdout.startswith(b"SP: VIOLATED")
    assert done.stderr == b""


def test_the_demo_finds_sp_violated_and_mup_ok(tmp_path):
    done = program("demo", "--out", str(tmp_path / "demo"))
    assert done.returncode == 0, done.stderr
    printed = done.stdout.decode()
    assert "SP: VIOLATED" in printed
    assert "13 of 20 parameters and 2 attention scales to blame" in " ".join(printed.split())
    assert re.search(r"blocks\.\{0,1\}\.attention\.query\.weight \(2\) +learns too fast +lr × m\^-1", printed)
    assert "SP, fixed: OK" in printed
    assert "µP: OK" in printed
    made = {path.name for path in (tmp_path / "demo").iterdir()}
    figures = {"coordinate_check.png", "slopes.png", "exponents.png"}
    assert made == {*figures, "report.html", "verdicts.csv", "mup.json", "experiment.json", "runs"}
    assert len(list((tmp_path / "demo" / "runs").rglob("*.json"))) == 36


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_keeps_what_is_done(tmp_path, number, code):
    # more runs than it could end while the signal is on its way
    options = ["--save-to", str(tmp_path), "--seeds", "60"]
    arguments = [sys.executable, "-m", "coordcheck", "run", "coordcheck.checks.demo:build_sp", *options]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        deadline = time.monotonic() + 120
        while not list(tmp_path.rglob("*-0.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
        running.send_signal(number)
        _, told = running.communicate(timeout=60)
    assert running.returncode == code
    assert b"the same call resumes" in told
    assert coordcheck.load(tmp_path).records


def test_keywords_reach_the_factory(user_folder, capsys):
    text = (
        USER_FILE
        + "\ndef build(width, lr=1e-3, parametrization='µP'):\n    return mlp(parametrization, lr=lr)(width)\n"
    )
    (user_folder / "train.py").write_text(text, encoding="utf-8")
    assert run("train.py:build", options=("--set", "lr=3e-3")) == 0
    assert run("train.py:build", options=("--set", "parametrization=SP", "--set", "lr=3e-3")) == 1
    assert run("train.py:build", options=("--set", "rate=1")) == 2
    assert "takes no 'rate'; it takes width, lr, parametrization" in capsys.readouterr().err


def test_other_settings_are_not_resumed(user_folder, capsys):
    assert run("train.py:build_mup", options=("--save-to", "runs")) == 0
    assert run("train.py:build_mup", options=("--resume", "runs")) == 0
    assert run("train.py:build_mup", options=("--resume", "runs", "--steps", "2")) == 2
    assert "steps was 4, is 2" in capsys.readouterr().err
    assert run("train.py:build_mup", options=("--resume", "runs", "--save-to", "others")) == 2
    assert run("train.py:build_mup", options=("--resume", "others")) == 2
    assert "there is nothing to resume in others" in capsys.readouterr().err


def test_no_probe_is_no_diagnosis(user_folder, capsys):
    assert run("train.py:build_sp", options=("--probe", "none")) == 1
    printed = capsys.readouterr().out
    assert "to blame" not in printed
    assert run("train.py:build_sp", options=("--probe", "train.py:batch")) == 1
    assert "to blame" in capsys.readouterr().out


def test_roles_are_given_by_glob(user_folder, capsys):
    assert run("train.py:build_mup", options=("--role", "readout.*=hidden", "--format", "json")) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["roles"] == {"readout.*": "hidden"}
    assert {row["role"] for row in told["verdicts"] if row["parameter"] == "readout.weight"} == {"hidden"}
    assert run("train.py:build_mup", options=("--role", "readout.*=head")) == 2
    assert "--role must map globs" in capsys.readouterr().err


def test_github_gets_annotations_and_a_summary(user_folder, capsys, monkeypatch):
    summary = user_folder / "summary.md"
    summary.write_text("before\n", encoding="utf-8")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    text = USER_FILE + "\ndef build(width):\n    return build_sp(width)\n"
    (user_folder / "train.py").write_text(text, encoding="utf-8")
    assert run("SP=train.py:build", options=("--format", "github")) == 1
    line = text.splitlines().index("def build(width):") + 1
    printed = capsys.readouterr().out
    assert f"::error file=train.py,line={line},title=coordcheck%3A SP::hidden.{{0,1}}.weight" in printed
    assert summary.read_text(encoding="utf-8").startswith("before\n## coordcheck")


def test_junit_is_xml_alone(user_folder, capsys):
    assert run("train.py:build_sp", options=("--format", "junit")) == 1
    suites = ElementTree.fromstring(capsys.readouterr().out)
    assert [suite.get("name") for suite in suites] == ["build_sp"]
    assert int(suites[0].get("failures", "0")) > 0


def test_the_page_is_written_from_a_run_and_from_its_files(user_folder, capsys):
    assert run("SP=train.py:build_sp", options=("--save-to", "runs", "--html", "a.html")) == 1
    assert main(["report", "runs", "b.html"]) == 1
    assert (user_folder / "a.html").read_bytes() == (user_folder / "b.html").read_bytes()
    assert main(["report", "runs", "train.py/check.html"]) == 2  # a file is no folder
    assert "cannot write" in capsys.readouterr().err


def test_a_plan_says_what_would_be_trained(user_folder, capsys):
    assert main(["plan", "train.py:build_mup", "--widths", "64", "128", "256"]) == 0
    assert "readout.weight" in capsys.readouterr().out
    assert main(["plan", "train.py:build_mup", "--format", "json"]) == 0
    json.loads(capsys.readouterr().out)
    assert main(["plan", "train.py:broken"]) == 2


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("such as (0, 3)", "such as (0, 3)"),
        ("Pass seeds=(0, 3), or seeds=(0,).", "Pass --seeds 0 3, or --seeds 0,."),
        ("no loss= was given", "no --loss was given"),
        ("pass loss=torch.nn.functional.cross_entropy (or", "pass --loss torch.nn.functional:cross_entropy (or"),
        ('name it: axis="depth".', "name it: --axis depth."),
        ("run without jobs= and executor=.", "run without --jobs and executor=."),
        ("Pass widths=(64, 128, 256, ...).", "Pass --widths 64 128 256."),
        ("save_to must be the path", "--save-to must be the path"),
        ("the loss must be a tensor", "the loss must be a tensor"),
        ("build(64) of 'a=b' returned", "build(64) of 'a=b' returned"),
    ],
)
def test_messages_speak_of_options(message, told):
    assert in_flags(message) == told


def test_colour_only_on_a_terminal_that_wants_it(tmp_path, report):
    report.save(tmp_path)
    forced = {**os.environ, "FORCE_COLOR": "1"}
    assert b"\x1b[" not in program("show", str(tmp_path)).stdout
    assert b"\x1b[" in program("show", str(tmp_path), env=forced).stdout
    assert b"\x1b[3" not in program("show", str(tmp_path), env={**forced, "NO_COLOR": "1"}).stdout


def test_what_the_users_own_code_raises_exits_2(user_folder, capsys):
    text = (
        USER_FILE + "\ndef batches():\n    raise RuntimeError('no data today')\n    yield\nbroken_batches = batches()\n"
    )
    (user_folder / "train.py").write_text(text, encoding="utf-8")
    assert main(["run", "train.py:build_mup", "--batch", "train.py:broken_batches", "--loss", "train.py:loss"]) == 2
    assert "RuntimeError: no data today" in capsys.readouterr().err


def test_a_figure_of_another_kind_is_refused_before_the_training(user_folder, capsys):
    assert run("train.py:broken", options=("--figure", "check.jpg")) == 2
    assert "known suffixes are .png, .svg, .pdf" in capsys.readouterr().err


def test_the_demo_fails_where_sp_does_not(monkeypatch, capsys, tmp_path):
    healthy = [record for label in ("SP", "µP") for record in power_law_records({"fc": {"change": 0.0}}, label=label)]
    monkeypatch.setattr("coordcheck.checks.demo.run_demo", lambda folder, jobs: coordcheck.Report(healthy))
    assert main(["demo", "--out", str(tmp_path)]) == 1


def test_factories_may_stand_after_the_widths(user_folder, capsys):
    options = ["--batch", "train.py:batch", "--loss", "train.py:loss", "--seeds", "1", "--probe", "none"]
    assert main(["run", *options, "--set", "lr=3e-3", *WIDTHS, "train.py:build_any"]) in (0, 3)
    assert "build_any:" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["run", *options])
    assert "say what to build" in capsys.readouterr().err
