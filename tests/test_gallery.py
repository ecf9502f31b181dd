from __future__ import annotations

import ast
import importlib.util
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import matplotlib as mpl
import pandas as pd
import pytest
import torch

ROOT = Path(__file__).parents[1]
GALLERY = ROOT / "gallery"
SHARED = ("lesson", "bugs", "broken", "plain", "ablations", "wild")  # by lessons
LIMIT = 200_000  # bytes of a figure: the page has many, and the largest shows four models
TRUE_LESSON = '''"""A title
=======

A claim, `arXiv:2203.03466 <https://arxiv.org/abs/2203.03466>`_, about ``build``.

What to see: a line.
"""

import lesson
import pandas as pd

# %%
# One line.

figure, axis = lesson.subplots()
axis.plot([1, 2], [1, 2])
lesson.save(figure, "limits_of_nothing")
lesson.table(pd.DataFrame({"name": ["a|b"], "slope": [0.5]}), "limits_of_nothing")

# %%
# The lesson.

assert 1 + 1 == 2, "arithmetic has changed"
'''
QUICK_LESSON = TRUE_LESSON.replace("import pandas as pd\n", "").replace("pd.DataFrame", "dict")
QUICK_SHARED = '''"""What it uses, without torch, pandas and matplotlib: files are written, and hold nothing."""
import sys
from pathlib import Path
from types import SimpleNamespace

def subplots():
    return None, SimpleNamespace(plot=lambda *points: None)

def save(figure, name, file="images/{}.png"):
    path = Path(sys.argv[1].removeprefix("--out=")) / file.format(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text("")

def table(frame, name):
    save(frame, name, "tables/{}.md")
'''


def load(name: str) -> ModuleType:
    """A module of the gallery, which is no package."""
    spec = importlib.util.spec_from_file_location(f"gallery_{name}", GALLERY / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[f"gallery_{name}"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = load("make")
LESSONS = {lesson.stem: lesson for lesson in make.lessons()}


@pytest.fixture(params=LESSONS)
def lesson(request):
    return LESSONS[request.param]


@pytest.fixture
def small_gallery(tmp_path: Path) -> Path:
    """A gallery of one lesson, which is true, with what it needs to run."""
    for name in ("lesson.py", "make.py", "conf.py", "index.rst"):
        shutil.copy2(GALLERY / name, tmp_path)
    (tmp_path / "plot_limits_of_nothing.py").write_text(TRUE_LESSON, encoding="utf-8")
    shutil.copytree(GALLERY / "guide", tmp_path / "guide")
    return tmp_path


@pytest.fixture
def quick_gallery(small_gallery: Path) -> Path:
    """The same, whose lesson needs none of the libraries that take seconds to import."""
    (small_gallery / "lesson.py").write_text(QUICK_SHARED, encoding="utf-8")
    (small_gallery / "plot_limits_of_nothing.py").write_text(QUICK_LESSON, encoding="utf-8")
    return small_gallery


KEPT = (
    "sp_versus_mup_mlp",
    "parametrizations",
    "bug_zoo_attention",
    "beyond_width_depth",
    "muon_scalings",
    "ntk_passes_the_plain_check",
)
RUN = [pytest.param(name, marks=[pytest.mark.thorough] * (name.removeprefix("plot_") not in KEPT)) for name in LESSONS]


@pytest.mark.parametrize("lesson", RUN, indirect=True)
def test_a_lesson_holds_in_a_quick_run(lesson, tmp_path, monkeypatch):
    """In this process, which has the imports already; `make.py` takes one of its own for each, as tested below."""
    if "optim.Muon" in lesson.source and not hasattr(torch.optim, "Muon"):
        pytest.skip(f"torch {torch.__version__} has no Muon")
    if "from transformers import" in lesson.source:
        pytest.importorskip("transformers", reason="the lesson needs coordcheck[hf]")
    monkeypatch.setattr(sys, "argv", [str(lesson.path), "--quick", f"--out={tmp_path}"])
    monkeypatch.syspath_prepend(GALLERY)
    for name in SHARED:
        monkeypatch.delitem(sys.modules, name, raising=False)
    with mpl.rc_context():
        try:
            runpy.run_path(str(lesson.path), run_name="__main__")
        finally:
            for name in SHARED:
                sys.modules.pop(name, None)
    for name in lesson.files:
        assert 0 < (tmp_path / name).stat().st_size < LIMIT, name


def test_a_lesson_is_written_as_one(lesson):
    assert re.match(r'"""(.+)\n=+\n\n', lesson.source), "its docstring is a page with an underlined title"
    title, underline = lesson.source[3:].split("\n")[:2]
    assert len(underline) >= len(title)
    assert "arXiv:" in lesson.paragraphs[1] or lesson.stem.startswith("plot_real_models"), "a claim with its source"
    assert lesson.caption, "a paragraph says what to see"
    assert lesson.cells >= 2
    assert 15 <= lesson.code_lines <= 50, f"{lesson.code_lines} lines of code"
    assert lesson.names("save"), "it draws something"
    for name in (*lesson.names("save"), *lesson.names("table")):
        assert name.startswith(lesson.stem.removeprefix("plot_")), f"{name} does not say which lesson it is of"


def test_a_lesson_ends_with_the_assertion_of_it(lesson):
    last = lesson.tree.body[-1]
    while isinstance(last, (ast.For, ast.With, ast.If)):
        last = last.body[-1]
    assert isinstance(last, ast.Assert)
    assert last.msg is not None, "it says what is wrong when it fails"


def test_a_lesson_belongs_to_one_chapter_and_is_on_the_page(lesson):
    assert [title for title, globs in make.CHAPTERS if make.matching([lesson], globs)] != []
    assert sum(len(make.matching([lesson], globs)) for _, globs in make.CHAPTERS) == 1
    page = (GALLERY / "README.md").read_text(encoding="utf-8")
    assert f"### {lesson.paragraphs[0]}\n" in page
    for name in lesson.files:
        assert (GALLERY / name).stat().st_size < LIMIT, f"{name}: python gallery/make.py --full {lesson.stem}"
    assert all(f"(images/{name}.png)" in page for name in lesson.names("save"))


def test_the_page_is_what_the_docstrings_say():
    assert (GALLERY / "README.md").read_text(encoding="utf-8") == make.readme(list(LESSONS.values()))


def test_every_committed_figure_and_table_is_of_a_lesson_or_in_the_readme_or_the_guide():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    guide = "".join(page.read_text(encoding="utf-8") for page in GALLERY.glob("guide/*.md"))
    known = {name for lesson in LESSONS.values() for name in lesson.files}
    for path in (*GALLERY.glob("images/*"), *GALLERY.glob("tables/*")):
        name = path.relative_to(GALLERY).as_posix()
        assert name in known or f"gallery/{name}" in readme or f"../{name}" in guide, f"{name} belongs to nothing"


def test_what_was_found_in_public_code_links_to_its_lines_at_a_commit():
    table = (GALLERY / "tables" / "found_in_the_wild.md").read_text(encoding="utf-8")
    links = re.findall(r"\[(\S+/\S+)\]\((\S+)\)", table)
    assert len(links) == table.count("https://") == 8
    for name, link in links:
        assert re.fullmatch(rf"https://github\.com/{re.escape(name)}/blob/[0-9a-f]{{40}}/\S+\.py#L\d+-L\d+", link), link


def test_a_true_lesson_passes_and_is_written(small_gallery, capsys):
    assert make.main(["--full", "--folder", str(small_gallery)]) == 0
    assert "ok" in capsys.readouterr().out
    assert (small_gallery / "images" / "limits_of_nothing.png").exists()
    page = (small_gallery / "README.md").read_text(encoding="utf-8")
    assert "### A title\n\nA claim, [arXiv:2203.03466](https://arxiv.org/abs/2203.03466), about `build`.\n" in page
    assert "*What to see:* a line." in page
    assert "| a\\|b | +0.50 |" in page


def test_a_check_touches_nothing_and_says_when_the_page_is_stale(quick_gallery, capsys):
    make.main(["--full", "--folder", str(quick_gallery)])
    before = {path: path.read_bytes() for path in quick_gallery.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert make.main(["--check", "--folder", str(quick_gallery)]) == 0
    after = {path: path.read_bytes() for path in quick_gallery.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert before == after
    (quick_gallery / "plot_limits_of_nothing.py").write_text(QUICK_LESSON.replace("A claim", "Another"), "utf-8")
    assert make.main(["--check", "--folder", str(quick_gallery)]) == 1
    assert "README.md\nit is stale: run python gallery/make.py --page" in capsys.readouterr().err
    assert make.main(["--page", "--folder", str(quick_gallery)]) == 0
    assert "Another, [arXiv" in (quick_gallery / "README.md").read_text(encoding="utf-8")
    assert "plot_" not in capsys.readouterr().out, "nothing was run for the page alone"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("1 + 1 == 2", "1 + 1 == 3"), "AssertionError: arithmetic has changed"),
        (("# One line.", "import warnings; warnings.warn('a thing is old')"), "UserWarning: a thing is old"),
        (('lesson.save(figure, "', 'print if True else lesson.save(figure, "'), "it did not write images/"),
        (("axis.plot(", "axis.plod("), "AttributeError"),
    ],
    ids=["assertion", "warning", "no figure", "error"],
)
def test_a_lesson_that_fails_is_named_and_its_figure_is_not_kept(quick_gallery, capsys, change, message):
    (quick_gallery / "plot_limits_of_nothing.py").write_text(QUICK_LESSON.replace(*change), encoding="utf-8")
    assert make.main(["--full", "--folder", str(quick_gallery)]) == 1
    captured = capsys.readouterr()
    assert "FAILED  plot_limits_of_nothing" in captured.out
    assert "FAILED plot_limits_of_nothing.py" in captured.err
    assert message in captured.err
    assert not (quick_gallery / "images").exists()


def test_an_unknown_lesson_is_refused():
    with pytest.raises(SystemExit, match="there is no lesson plot_nothing; known are"):
        make.main(["--check", "plot_nothing"])


def test_the_same_figure_gives_the_same_bytes_and_a_table_is_markdown(tmp_path, monkeypatch):
    page = load("lesson")
    monkeypatch.setattr(sys, "argv", ["plot_x.py", f"--out={tmp_path}"])
    found = []
    for _ in range(2):
        figure, (left, right) = page.subplots(1, 2, height=2)
        left.plot([64, 128, 256], [1, 2, 4], color=page.RED)
        page.log2_axes(left, [64, 128, 256])
        page.guide(left, [64, 256], 1.0, 0.5, "√n")
        theory = pd.DataFrame({"input": [0.0, 1.0], "readout": [0.5, -0.5]}, index=["SP", "µP"])
        page.beside_theory(right, theory, theory + 0.01, "as measured")
        page.save(figure, "twice")
        found.append((tmp_path / "images" / "twice.png").read_bytes())
    assert found[0] == found[1]
    assert [text.get_text() for text in right.get_yticklabels()] == ["SP", "µP"]
    assert right.get_ylim()[0] > right.get_ylim()[1], "the first row is on top"
    page.table(pd.DataFrame({"layer": ["a"], "slope": [-0.5]}), "one")
    assert (tmp_path / "tables" / "one.md").read_text() == "| layer | slope |\n| --- | --- |\n| a | -0.50 |\n"


def test_the_text_is_real_and_split(monkeypatch):
    page = load("lesson")
    training, validation = page.text()
    assert len(training) > 300_000
    assert 8 < len(training) / len(validation) < 10
    assert b" the " in bytes(training[:10_000].tolist())
    batch = page.text_batch(4, 16, seed=1)
    assert batch.shape == (4, 17)
    assert torch.equal(batch, page.text_batch(4, 16, seed=1))
    assert not torch.equal(batch, page.text_batch(4, 16, seed=2))


@pytest.mark.parametrize("true", [True, False])
def test_the_site_is_built_and_a_false_lesson_stops_it(small_gallery, true):
    pytest.importorskip("sphinx_gallery", reason="the site needs coordcheck[docs]")
    pytest.importorskip("furo", reason="the site needs coordcheck[docs]")
    pytest.importorskip("myst_parser", reason="the site needs coordcheck[docs]")
    if not true:
        source = TRUE_LESSON.replace("1 + 1 == 2", "1 + 1 == 3")
        (small_gallery / "plot_limits_of_nothing.py").write_text(source, encoding="utf-8")
    shutil.copytree(GALLERY / "images", small_gallery / "images")  # which the guide shows
    site = small_gallery / "_build" / "site"
    command = [sys.executable, "-m", "sphinx", "-W", "-q", str(small_gallery), str(site)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (built.returncode == 0) is true, built.stderr
    if true:
        page = next(site.glob("lessons/*/plot_limits_of_nothing.html")).read_text(encoding="utf-8")
        assert "sphx_glr_plot_limits_of_nothing_001.png" in page
        assert "What to see: a line." in page
        for written in (GALLERY / "guide").iterdir():
            assert (site / "guide" / f"{written.stem}.html").is_file(), written.name
        limits = (site / "guide" / "limitations.html").read_text(encoding="utf-8")
        assert "../lessons/index.html" in limits
        assert "README.md" not in limits
