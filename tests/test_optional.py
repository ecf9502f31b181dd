"""What is optional can be missing: everything else then works, and what needs it names the extra that brings it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from coordcheck.common.extras import UnusableExtra, import_extra

ROOT = Path(__file__).parent.parent
# the packages of every extra, and those that only some users have
EXTRAS = (
    "seaborn",
    *("transformers", "accelerate", "lightning", "pytorch_lightning", "mup", "timm", "torchvision", "torchmetrics"),
    *("tqdm", "yaml", "tensorboard", "wandb", "mlflow", "trackio", "IPython", "ipywidgets", "safetensors"),
    *(
        "hypothesis",
        "jsonschema",
        "playwright",
        "xdist",
        "execnet",
        "sphinx",
        "sphinx_gallery",
        "furo",
        "myst_parser",
        "huggingface_hub",
    ),
    *("ruff", "mypy", "setuptools", "pip", "hatchling", "psutil", "omegaconf"),
)
OWN = (
    "torch",
    "numpy",
    "scipy",
    "pandas",
    "matplotlib",
    "rich",
    "jinja2",
    "markupsafe",
    "loky",
    "cloudpickle",
    "filelock",
)

# the finder of installed packages, as it is where these are not installed: it does not raise, it finds nothing
BLOCK = """
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = classmethod(
    lambda cls, name, path=None, target=None: None if name.partition(".")[0] in MISSING else find(name, path, target)
)
"""

TRAIN = """
import torch
def build(width):
    model = torch.nn.Sequential(torch.nn.Linear(8, width), torch.nn.ReLU(), torch.nn.Linear(width, 4))
    return model, torch.optim.Adam(model.parameters(), lr=0.01)
batch = torch.ones(4, 8), torch.tensor([0, 1, 2, 3])
"""


def without(missing: tuple[str, ...], code: str, folder) -> str:
    """What Python prints when it runs the code where these packages are missing."""
    done = subprocess.run(
        [sys.executable, "-c", f"MISSING = {missing!r}\n{BLOCK}{code}"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def packages(start: str, end: str) -> set[str]:
    """The packages that a part of pyproject.toml names."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return set(re.findall(r'"([a-zA-Z][\w-]*)[\[>",]', text[text.index(start) : text.index(end, text.index(start))]))


def test_every_declared_package_is_one_of_the_two_kinds():
    """A package that an extra is given is blocked here, too; one that coordcheck needs is not."""
    # distributions whose module has another name
    modules = {
        "pyyaml": "yaml",
        "pytest-xdist": "xdist",
        "sphinx-gallery": "sphinx_gallery",
        "myst-parser": "myst_parser",
    }
    own = {modules.get(name, name) for name in packages("dependencies = [", "]\n\n")}
    extras = {modules.get(name, name) for name in packages("[project.optional-dependencies]", "[project.scripts]")}
    no_modules = {"coordcheck", "pandas-stubs", "scipy-stubs"}
    assert own == set(OWN)
    assert extras - no_modules - {"pytest"} <= set(EXTRAS)  # without pytest the plugin has nothing to plug into


CHECK = """
from pathlib import Path
Path("optional_train.py").write_text(TRAIN)
sys.path.insert(0, "")
import coordcheck
from coordcheck.cli.main import main
F = "torch.nn.functional:cross_entropy"
shared = ["--batch", "optional_train.py:batch", "--loss", F, "--widths", "8", "16", "32", "--seeds", "1"]
for command in (
    ["run", "optional_train.py:build", *shared, "--save-to", "runs", "--figure", "a.png", "--html", "a.html"],
    ["plan", "optional_train.py:build", "--batch", "optional_train.py:batch"],
    ["diagnose", "optional_train.py:build", *shared],
    ["show", "runs"],
    ["show", "runs", "--format", "json"],
    ["report", "runs", "b.html"],
):
    assert main(command) in (0, 1, 3), command
report = coordcheck.load("runs")
assert report._repr_html_() and str(report) and report.figure()
import torch, optional_train
with coordcheck.Recorder(*optional_train.build(16), width=16, save_to="own") as recorder:
    pass
try:
    coordcheck.huggingface(object())
except coordcheck.CoordCheckError as error:
    print("huggingface:", error)
for name in ("transformers", "lightning"):
    try:
        __import__(f"coordcheck.integrations.{name}")
    except ImportError as error:
        print(f"{name}:", error)
print("loaded:", *[name for name in MISSING if name in sys.modules])
"""


def test_everything_else_works_without_any_extra(tmp_path):
    told = without((*EXTRAS, "pytest", "_pytest"), f"TRAIN = {TRAIN!r}\n" + CHECK, tmp_path).splitlines()
    assert told[-4:] == [
        'huggingface: huggingface needs transformers: pip install "coordcheck[hf]".',
        'transformers: this callback needs transformers: pip install "coordcheck[hf]".',
        'lightning: this callback needs lightning: pip install "coordcheck[lightning]".',
        "loaded:",
    ]


PLUGIN = """
import pytest
class Told:
    def pytest_runtest_logreport(self, report):
        if report.when == "call":
            print("outcome:", report.outcome)
options = ["-q", "-p", "no:cacheprovider", "-p", "coordcheck.pytest_plugin", "test_it.py"]
raise SystemExit(pytest.main(options, plugins=[Told()]))
"""


def test_the_plugin_needs_nothing_but_pytest(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "def test_it(coordcheck):\n    assert callable(coordcheck)\n", encoding="utf-8"
    )
    light = without((*EXTRAS, *OWN), "import os; os.environ['PYTEST_DISABLE_PLUGIN_AUTOLOAD'] = '1'" + PLUGIN, tmp_path)
    assert "outcome: passed" in light


def test_importing_needs_none_of_the_packages(tmp_path):
    told = without(
        (*EXTRAS, *OWN, "pytest", "_pytest"),
        """
import coordcheck, coordcheck.cli.main
print(coordcheck.__version__, coordcheck.CoordCheckError.__name__, "check" in dir(coordcheck))
for arguments in (["--help"], ["run", "--help"], ["--version"]):
    try:
        coordcheck.cli.main.main(arguments)
    except SystemExit as stop:
        assert stop.code == 0
""",
        tmp_path,
    )
    assert "CoordCheckError True" in told
    assert "usage: coordcheck run" in told


def test_the_blocker_blocks(tmp_path):
    with pytest.raises(AssertionError, match="No module named 'torch'"):
        without(OWN, "import torch", tmp_path)


@pytest.mark.fault(64)
@pytest.mark.parametrize(
    "raised", ["RuntimeError('operator torchvision::nms does not exist')", "ImportError('libx.so')"]
)
def test_a_broken_package_is_told_apart_from_a_missing_one(tmp_path, monkeypatch, raised):
    (tmp_path / "broken_extra.py").write_text(f"raise {raised}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnusableExtra, match=r"this callback needs broken_extra, which is installed and cannot be impo"):
        import_extra("broken_extra", extra="hf", purpose="this callback")
    assert import_extra("broken_extra", "json", extra="hf", purpose="this callback").__name__ == "json"


@pytest.mark.fault(64)
def test_an_attribute_that_is_imported_late_may_be_what_is_broken(tmp_path, monkeypatch):
    late = "def __getattr__(name):\n    raise RuntimeError('Failed to import late.trainer')\n"
    (tmp_path / "late_extra.py").write_text(late, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert import_extra("late_extra", extra="hf", purpose="it").__name__ == "late_extra"
    with pytest.raises(UnusableExtra, match=r"RuntimeError: Failed to import late.trainer\. Install versions that fit"):
        import_extra("late_extra", extra="hf", purpose="it", attribute="TrainerCallback")
