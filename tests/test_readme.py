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

import coordcheck
from coordcheck.analysis.findings import Cause
from coordcheck.cli.options import parser

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "gallery/guide").glob("*.md")}
PAGES = {ROOT / "README.md": README} | {ROOT / f"gallery/guide/{page}.md": text for page, text in GUIDE.items()}
CONTENTS = (ROOT / "gallery/index.rst").read_text(encoding="utf-8")


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


def headings(text: str) -> set[str]:
    """The anchors of a page, as GitHub and the site make them of its headings."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def run(blocks: Iterable[str]) -> dict[str, Any]:
    """The names after the blocks, run one after the other."""
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    return names


@pytest.mark.parametrize(
    "framework", [pytest.param(name, marks=[pytest.mark.thorough] * (name == "lightning")) for name in PRINTED]
)
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
    first, *others = blocks("python", GUIDE["trainers"])
    assert all(map(frameworks, others)), "a block that nothing runs"
    chosen = [block for block in others if framework in frameworks(block)]
    run([first, *chosen])
    assert len(chosen) == (2 if framework == "transformers" else 1)
    assert PRINTED[framework] in capsys.readouterr().out


def test_the_python_blocks_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(block for block in blocks("python") if not block.startswith("# test_"))
    assert (tmp_path / "check.html").stat().st_size > 10_000
    assert matplotlib.image.imread(tmp_path / "check.png").shape[2] == 4
    assert "build: VIOLATED" in capsys.readouterr().out


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


TOLD = {
    "axes": r"1\.last +initialised too large +activation at t=0 +\+0\.5",
    "diagnosis": r"4\.weight: multiply its init",
    "limitations": r"the best learning rate moves: -0\.[345]",
    "loop": r"mine: VIOLATED",
}


@pytest.mark.parametrize(
    "page", [page for page, text in GUIDE.items() if blocks("python", text) and page not in ("testing", "trainers")]
)
def test_the_blocks_of_a_page_of_the_guide_run_in_order(tmp_path, monkeypatch, capsys, page):
    monkeypatch.chdir(tmp_path)
    run(blocks("python", GUIDE[page]))
    assert re.search(TOLD.get(page, ""), capsys.readouterr().out)


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


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150
    assert len(README.split()) <= 900


def test_the_first_line_with_the_tests_is_the_one_that_continuous_integration_runs():
    """.ci/run takes it out of the README by this very text."""
    command = next(line for line in README.splitlines() if "python -m pytest" in line)
    assert command.startswith("python -m venv --upgrade-deps .venv && ")
    assert command.endswith(" && .venv/bin/python -m pytest -n 2")
    assert "grep -m 1 'python -m pytest' README.md" in (ROOT / ".ci/run").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_within_the_repository_leads_somewhere(page):
    text = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"(?<!\\)\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.is_file(), link
        if anchor:
            assert anchor in headings(target.read_text(encoding="utf-8")), link


def test_every_page_of_the_guide_is_in_the_contents_of_the_site():
    listed = re.findall(r"^   guide/(\w+)$", CONTENTS, flags=re.MULTILINE)
    assert sorted(listed) == sorted(path.stem for path in (ROOT / "gallery/guide").iterdir())


def test_every_page_of_the_guide_is_reached_from_the_readme():
    reached, ahead = set(), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        if page in PAGES and page not in reached:
            reached.add(page)
            links = re.findall(r"\]\(([^)#\s]+\.md)", PAGES[page])
            ahead += [(page.parent / link).resolve() for link in links]
    assert {page.stem for page in PAGES} - {page.stem for page in reached} == set()


def test_every_public_name_is_on_the_page_of_the_names():
    page = (ROOT / "gallery/guide/api.rst").read_text(encoding="utf-8")
    told = set(re.findall(r"^\.\. auto\w+:: coordcheck\.(\w+)$", page, flags=re.MULTILINE))
    assert told == set(coordcheck.__all__) - {"models"}
    models = set(re.findall(r"^\.\. auto\w+:: coordcheck\.models\.(\w+)$", page, flags=re.MULTILINE))
    assert models <= set(coordcheck.models.__all__)


@pytest.mark.parametrize("text", [README, GUIDE["testing"]], ids=["README", "testing"])
def test_the_test_passes_with_the_plugin(pytester, text):
    test = next(block for block in blocks("python", text) if block.startswith("# test_"))
    pytester.makepyfile(test_scale=test)
    options = [] if _installed() else ["-p", "coordcheck.pytest_plugin"]
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", *options)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["coordcheck: 1 check, width-invariant"])


def test_the_marker_of_the_guide_is_one_that_decides(pytester):
    (marker,) = re.findall(r"`(@pytest\.mark\.coordcheck\(widths=[^`]*)`", GUIDE["testing"])
    widths = re.search(r"\(widths=\((.*?)\)\)", marker)[1]
    row = rf"^\| {widths} \| 3 \| 40 of 40 \|$"
    assert re.search(row, GUIDE["reading"], flags=re.MULTILINE), "its row of the table of undecided checks"
    (test,) = blocks("python", GUIDE["testing"])
    pytester.makepyfile(test_scale="import pytest\n" + test.replace("def test_width", f"{marker}\ndef test_width"))
    options = [] if _installed() else ["-p", "coordcheck.pytest_plugin"]
    pytester.runpytest_inprocess("-p", "no:cacheprovider", *options).assert_outcomes(passed=1)


def _installed() -> bool:
    """Whether pytest finds the plugin by itself."""
    return any(point.value == "coordcheck.pytest_plugin" for point in entry_points(group="pytest11"))


def test_the_workflow_is_one_whose_commands_parse():
    (workflow,) = (yaml.safe_load(block) for block in blocks("yaml", GUIDE["ci"]))
    steps = workflow["jobs"]["coordcheck"]["steps"]
    (command,) = (step["run"] for step in steps if step.get("run", "").startswith("coordcheck "))
    options = parser().parse_args(shlex.split(command)[1:])
    assert (options.format, str(options.html)) == ("github", steps[-1]["with"]["path"])


def test_the_pytest_options_exist(pytester):
    told = pytester.runpytest_inprocess("--help", *([] if _installed() else ["-p", "coordcheck.pytest_plugin"]))
    for option in {
        word.partition("=")[0]
        for block in blocks("sh", GUIDE["testing"])
        for word in block.split()
        if "--coordcheck" in word
    }:
        told.stdout.fnmatch_lines([f"*{option}*"])
