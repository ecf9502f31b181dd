"""Every Python block of the README and of the guide runs, in order, in an empty folder; their commands exist."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
import yaml
from zoo import library

from coordcheck.analysis.findings import Cause
from coordcheck.cli.options import parser

pytest_plugins = ["pytester"]

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


GUIDE = {
    path.stem: path.read_text(encoding="utf-8") for path in (Path(__file__).parents[1] / "gallery/guide").glob("*.md")
}


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


PRINTED = {
    "transformers": "SP: VIOLATED",
    "lightning": "SP: VIOLATED",
    "mup": "",
    "timm": "vit: VIOLATED",
    "tensorboard": "",
}


def frameworks(block: str) -> set[str]:
    """The packages of which a block imports something and which coordcheck does not bring."""
    imported = re.findall(r"^(?:import|from) (\S+)", block, flags=re.MULTILINE)
    return {name for name in PRINTED if any(name in path.split(".") and "coordcheck" not in path for path in imported)}


def run(blocks: Iterable[str]) -> dict[str, Any]:
    """The names after the blocks, run one after the other."""
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    return names


@pytest.mark.parametrize("framework", PRINTED)
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator is found")
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning")
def test_the_blocks_of_a_framework_run_after_the_first(tmp_path, monkeypatch, capsys, framework):
    try:
        library(framework)
    except ImportError:
        pytest.skip(f"{framework} is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # which seed_everything sets, for every process that follows
    first, *others = blocks("python")
    chosen = [block for block in others if framework in frameworks(block)]
    run([first, *chosen])
    assert len(chosen) == (2 if framework == "transformers" else 1)
    assert PRINTED[framework] in capsys.readouterr().out


def test_the_python_blocks_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(block for block in blocks("python") if not block.startswith("# test_") and not frameworks(block))
    assert (tmp_path / "check.html").stat().st_size > 10_000
    assert matplotlib.image.imread(tmp_path / "check.png").shape[2] == 4
    printed = capsys.readouterr().out
    assert "build: VIOLATED" in printed
    assert re.search(r"1\.last +initialised too large +activation at t=0 +\+0\.5", printed)
    assert "mine: VIOLATED" in printed


def test_the_check_of_ones_own_model_is_twelve_lines():
    first = [line for line in blocks("python")[0].splitlines() if line.strip()]
    assert len(first) <= 12


def test_the_printed_report_is_what_the_block_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks("python")[0], "README.md", "exec"), {})
    shown = blocks("text")[0].splitlines()
    printed = capsys.readouterr().out.splitlines()
    assert shown[0].split(",")[0] == printed[0].split(",")[0]
    assert shown[1].split() == printed[1].split()
    assert [line.split()[:3] for line in shown[2:5]] == [line.split()[:3] for line in printed[2:5]]


@pytest.mark.parametrize("page", [page for page, text in GUIDE.items() if blocks("python", text)])
def test_the_blocks_of_a_page_of_the_guide_run_in_order(tmp_path, monkeypatch, page):
    monkeypatch.chdir(tmp_path)
    run(blocks("python", GUIDE[page]))


def test_every_cause_and_note_with_a_factor_has_its_lines():
    page = GUIDE["remedies"]
    examples = "\n".join(blocks("python", page))
    for cause in Cause:
        assert f'("{cause.value}", ' in examples, f"no example of {cause.value}"
    for note in ("multiply weight_decay by m^1", "is eps as large as the gradient?"):
        assert note in examples
    assert examples.count("== {}") >= len(Cause) - 1  # init and lr are mended together


def test_the_pages_that_are_made_are_not_stale(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "gallery")
    made = runpy.run_path(str(Path(__file__).parents[1] / "gallery/reference.py"))["pages"]()
    for name, text in made.items():
        assert GUIDE[name.removesuffix(".md")] == text, f"{name} is stale: python gallery/reference.py"


@pytest.mark.parametrize(
    "command",
    [
        line
        for text in (README, *GUIDE.values())
        for block in blocks("sh", text)
        for line in block.splitlines()
        if line.startswith("coordcheck ")
    ],
)
def test_the_commands_parse(command):
    assert parser().parse_args(shlex.split(command, comments=True)[1:]).command


def test_the_images_exist():
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (Path(__file__).parent.parent / path).is_file(), path


def test_the_test_passes_with_the_plugin(pytester):
    test = next(block for block in blocks("python") if block.startswith("# test_"))
    pytester.makepyfile(test_scale=test)
    options = [] if _installed() else ["-p", "coordcheck.pytest_plugin"]
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", *options)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["coordcheck: 1 check, width-invariant"])


def test_the_marker_of_the_readme_is_one_that_decides(pytester):
    (marker,) = re.findall(r"`(@pytest\.mark\.coordcheck\(widths=[^`]*)`", README)
    widths = re.search(r"\(widths=\((.*?)\)\)", marker)[1]
    assert re.search(rf"^\| {widths} \| 3 \| 40 of 40 \|$", README, flags=re.M), "its row of the table below"
    test = next(block for block in blocks("python") if block.startswith("# test_"))
    pytester.makepyfile(test_scale="import pytest\n" + test.replace("def test_width", f"{marker}\ndef test_width"))
    options = [] if _installed() else ["-p", "coordcheck.pytest_plugin"]
    pytester.runpytest_inprocess("-p", "no:cacheprovider", *options).assert_outcomes(passed=1)


def _installed() -> bool:
    """Whether pytest finds the plugin by itself."""
    return any(point.value == "coordcheck.pytest_plugin" for point in entry_points(group="pytest11"))


def test_the_workflow_is_one_whose_commands_parse():
    (workflow,) = (yaml.safe_load(block) for block in blocks("yaml"))
    steps = workflow["jobs"]["coordcheck"]["steps"]
    (command,) = (step["run"] for step in steps if step.get("run", "").startswith("coordcheck "))
    options = parser().parse_args(shlex.split(command)[1:])
    assert (options.format, str(options.html)) == ("github", steps[-1]["with"]["path"])


def test_the_pytest_options_exist(pytester):
    told = pytester.runpytest_inprocess("--help", *([] if _installed() else ["-p", "coordcheck.pytest_plugin"]))
    for option in {
        word.partition("=")[0] for block in blocks("sh") for word in block.split() if "--coordcheck" in word
    }:
        told.stdout.fnmatch_lines([f"*{option}*"])
