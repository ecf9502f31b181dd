"""The house: imports go one way, importing is light, public names are few and documented."""

from __future__ import annotations

import ast
import graphlib
import inspect
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

import coordcheck

PACKAGE = Path(coordcheck.__file__).parent
# left to right: a wing imports only from those before it
WINGS = (
    *("common", "runs", "analysis", "models", "recording", "reporting", "training"),
    *("integrations", "checks", "cli", "pytest_plugin"),
)
PILLARS = {"recording", "reporting"}  # which never meet
WITHOUT_TORCH = ("common", "runs", "analysis", "reporting")  # where a saved check is read
FRONT = {"__init__", "__main__", "py"}  # beside the wings: the public names, `python -m`, and py.typed


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts if parts[-1] != "__init__" or len(parts) == 1 else parts[:-1])


SOURCES = {module_name(path): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
MODULES = SOURCES.keys() - {"__init__"}


def imported(source: str) -> set[str]:
    """The package's own modules that a source imports: inside functions and for annotations, too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            module = str(node.module)
            found |= {name if (name := f"{module}.{alias.name}") in known() else module for alias in node.names}
            assert not node.level, "imports are absolute"
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.removeprefix("coordcheck.") for name in found if name.startswith("coordcheck.")} | (
        {"__init__"} if "coordcheck" in found else set()
    )


def known() -> set[str]:
    return {f"coordcheck.{name}" for name in MODULES}


def wing(name: str) -> str:
    return name.partition(".")[0]


def wrong_way(name: str, source: str) -> set[str]:
    """What a module of the house imports from a wing above its own, from the other pillar, or from the front."""
    own, found = wing(name), set()
    for other in imported(source):
        its = wing(other)
        if its not in WINGS or WINGS.index(its) > WINGS.index(own) or {own, its} == PILLARS:
            found.add(other)
    return found


def circles(sources: Mapping[str, str]) -> list[str]:
    """A circle of imports, if there is one."""
    try:
        graphlib.TopologicalSorter({name: imported(source) for name, source in sources.items()}).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_the_listing_reads_as_the_flow_of_the_data():
    # a folder that moved away may leave compiled files behind
    entries = {path.stem for path in PACKAGE.iterdir() if path.is_file() or any(path.rglob("*.py"))}
    assert entries == {*WINGS, *FRONT}
    assert len(entries) <= 14


@pytest.mark.parametrize("name", sorted(MODULES - {"__main__"}))
def test_a_module_imports_only_from_its_own_wing_and_those_below(name):
    assert wrong_way(name, SOURCES[name]) == set()


def test_no_imports_go_in_a_circle():
    assert circles({name: SOURCES[name] for name in MODULES}) == []


def test_every_package_says_what_it_is():
    for path in PACKAGE.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_the_import_tests_can_fail():
    lazy = "def f():\n    from coordcheck.reporting.report import Report\n"
    assert wrong_way("analysis.slopes", lazy) == {"reporting.report"}
    annotation = "if TYPE_CHECKING:\n    from coordcheck.checks import plans\n"
    assert wrong_way("training.sweep", annotation) == {"checks.plans"}
    assert wrong_way("reporting.text", "import coordcheck.recording.recorder") == {"recording.recorder"}
    assert wrong_way("checks.check", "from coordcheck import Report") == {"__init__"}
    assert circles({"a": lazy, "reporting.report": "import coordcheck.b", "b": "import coordcheck.a"})


LIMITS = {"module": 300, "class": 200, "function": 60}  # lines


def longer(name: str, source: str) -> set[str]:
    """What of a module takes more than one sitting to read."""
    found = {f"module {name}"} if len(source.splitlines()) > LIMITS["module"] else set()
    for node in ast.walk(ast.parse(source)):
        kind = {ast.ClassDef: "class", ast.FunctionDef: "function"}.get(type(node), "")
        if kind and node.end_lineno - node.lineno + 1 > LIMITS[kind]:
            found.add(f"{kind} {node.name}")
    return found


def test_nothing_takes_more_than_one_sitting():
    assert set().union(*(longer(name, source) for name, source in SOURCES.items())) == set()


def test_what_is_long_is_found():
    assert longer("a.b", "def f():\n" + "    x = 1\n" * 65) == {"function f"}
    assert longer("a.b", "class A:\n" + "    x = 1\n" * 300) == {"module a.b", "class A"}


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


HEAVY = ("torch", "matplotlib", "pandas", "numpy", "scipy", "seaborn", "rich")


def loaded(statement: str) -> set[str]:
    printed = run_python(f"{statement}\nimport sys\nprint(*[m for m in {HEAVY!r} if m in sys.modules])")
    return set(printed.split())


def test_importing_the_package_and_the_command_line_is_light():
    assert loaded("import coordcheck, coordcheck.cli.main; coordcheck.cli.options.parser()") == set()


def test_the_light_import_test_can_fail():
    assert "torch" in loaded("import coordcheck; coordcheck.check")


def test_a_check_does_not_load_matplotlib():
    assert "matplotlib" not in loaded("import coordcheck.checks.check, coordcheck.checks.demo")


def importing(wings: Sequence[str]) -> str:
    """Code that imports every module of these wings."""
    return "import " + ", ".join(f"coordcheck.{name}" for name in sorted(MODULES) if wing(name) in wings)


NO_TORCH = """
import importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("no torch here")
sys.meta_path.insert(0, Missing())
"""


def test_saved_checks_are_read_without_torch():
    run_python(NO_TORCH + importing(WITHOUT_TORCH))


def test_the_wall_before_torch_can_be_missed():
    with pytest.raises(AssertionError, match="torch"):
        run_python(NO_TORCH + importing(["training"]))


def test_public_names_are_few_and_documented():
    assert len(coordcheck.__all__) <= 22
    for name in coordcheck.__all__:
        assert inspect.getdoc(getattr(coordcheck, name)), name


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'chek'"):
        coordcheck.chek  # noqa: B018  # the access is the test
