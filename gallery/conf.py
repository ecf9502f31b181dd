"""The gallery as a site.

    sphinx-build -W gallery gallery/_build/site              # small
    sphinx-build -W -t full gallery gallery/_build/site      # at the size of the committed figures

Every lesson runs while the site is built, and one that fails fails the build.
"""

import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # lessons run elsewhere than where `lesson` lies

from sphinx_gallery.scrapers import figure_rst  # noqa: E402

if tags.has("full"):  # noqa: F821  # sphinx gives its configuration this name
    sys.argv.append("--full")  # which lessons ask for

import lesson  # noqa: E402
import make  # noqa: E402

CHAPTERS = HERE / "_build" / "chapters"  # copies of the scripts, a folder per chapter: sections of the site


def copy_chapters() -> None:
    """Lay the scripts out as sphinx-gallery wants them: a folder with a title per section."""
    for folder in (CHAPTERS, HERE / "lessons"):  # else a page of another size, or of a lesson that is gone, would stay
        shutil.rmtree(folder, ignore_errors=True)
    titles = {CHAPTERS: "Lessons"}
    for index, (title, globs) in enumerate(make.CHAPTERS):
        for found in make.matching(make.lessons(), globs):
            folder = CHAPTERS / str(index)
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy2(found.path, folder)
            titles[folder] = title
    for folder, title in titles.items():
        underline = ("=" if folder == CHAPTERS else "-") * len(title)
        (folder / "GALLERY_HEADER.rst").write_text(f"{title}\n{underline}\n", encoding="utf-8")


def saved_figures(block, variables, configuration) -> str:
    """What a cell gave to `lesson.save`, for its page."""
    paths = []
    while lesson.shown:
        paths.append(next(variables["image_path_iterator"]))
        lesson.shown.pop(0).savefig(paths[-1], dpi=lesson.DPI)
    return figure_rst(paths, configuration["src_dir"])


class AsOnThePage:
    """The order of README.md, as a key of sorting for the files of a chapter."""

    stems = [found.stem for found in make.lessons()]

    def __init__(self, folder) -> None: ...

    def __call__(self, name) -> int:
        """The place of a file among all lessons."""
        return self.stems.index(Path(name).stem)


copy_chapters()
project = "coordcheck"
html_title = "coordcheck: the gallery"
html_theme = "furo"
html_show_copyright = html_show_sphinx = html_copy_source = False
extensions = ["sphinx_gallery.gen_gallery", "myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
autodoc_typehints = "none"  # the signature has none, and each docstring says what it takes
default_role = "code"  # a word between single backticks
myst_heading_anchors = 3  # headings can be linked to
exclude_patterns = ["_build", "README.md", "tables"]  # the page of the repository, and what its lessons write
suppress_warnings = ["config.cache"]  # the scraper is a function, which needs no cache
sphinx_gallery_conf = {
    "examples_dirs": str(CHAPTERS),
    "gallery_dirs": "lessons",
    "filename_pattern": "plot_",
    "image_scrapers": (saved_figures,),
    "reset_modules": (),
    "within_subsection_order": AsOnThePage,
    "nested_sections": False,
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_signature": False,
    "min_reported_time": 10**6,
    "write_computation_times": False,
}


def setup(app) -> None:
    """Links of the guide to the page of the repository lead to the lessons of the site."""
    app.connect("source-read", link_lessons)


def link_lessons(app, name, source) -> None:
    """Change the text of one page, the one item of `source`, before it is parsed."""
    source[0] = re.sub(r"\]\(\.\./README\.md(#[^)]*)?\)", "](../lessons/index.rst)", source[0])
