"""The house: imports go one way, importing is light, public names are few and documented."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import coordcheck

PACKAGE = Path(coordcheck.__file__).parent
# left to right: a module imports only from those before it
ORDER = [
    *("escaping", "redaction", "errors", "reading", "documents"),
    *("letters", "extras", "isolation", "interrupts", "output"),
    *("records", "repeats", "folds", "arguments", "schemas", "runfiles", "claims", "agreement"),
    *("owners", "codes", "contents", "fingerprints", "scales", "shards"),
    *("frames", "calls", "batches", "inputs", "windows", "randomness", "surroundings", "modes", "hooks", "wrappers"),
    *("sites", "state", "probing", "parameters", "ranks", "reduction"),
    *("operations", "uses", "keeping", "steps", "tracing", "replays", "parts", "retracing"),
    *("facts", "changes", "gradients", "effects", "degrees", "backwards", "live", "recorder"),
    *("integrations", "integrations.recording", "integrations.transformers", "integrations.lightning"),
    *("losses", "trials", "payloads", "diagnosing", "progress", "training", "workers", "keeper", "sweep"),
    *(
        "measurements",
        "slopes",
        "optima",
        "verdicts",
        "roles",
        "clipping",
        "exponents",
        "diagnosis",
        "blame",
        "audits",
        "marks",
        "summaries",
        "text",
        "figures.style",
        "figures.views",
        "figures.rows",
        "figures.panels",
        "figures.curves",
        "figures.keys",
        "figures.divergence",
        "figures.exponents",
        "figures.slope_map",
        "figures.transfer",
        "figures.inline",
        "figures",
        "pagedata",
        "page",
        "integrations.loggers",
        "labels",
        "report",
        "formats",
        "baselines",
        "baselines.files",
        "checks",
        "transfer",
        "plans.blueprints",
        "plans.costs",
        "plans.shapes",
        "plans.drafting",
        "plans.obstacles",
        "plans.timings",
        "plans.text",
        "plans",
    ),
    *(
        "models.parametrizations",
        "models.builders",
        "models.mlp",
        "models.transformer",
        "models",
        "demo",
        "targets",
        "configs",
        "glossary.terms",
        "glossary.columns",
        "glossary",
        "options",
        "cli",
        "__main__",
        "pytest_plugin.settings",
        "pytest_plugin.outcomes",
        "pytest_plugin.fixture",
        "pytest_plugin.summary",
        "pytest_plugin",
    ),
]
# from `measurements` to the right, a saved check is read without torch
WITHOUT_TORCH = [
    "escaping",
    "redaction",
    "errors",
    "records",
    "runfiles",
    "measurements",
    "slopes",
    "optima",
    "verdicts",
    "roles",
    "exponents",
    "diagnosis",
    "blame",
    "audits",
    "marks",
    "text",
    "figures",
    "report",
    "cli",
]


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imported(source: str) -> set[str]:
    """The package's own modules that a source imports at run time, wherever in it the import stands."""
    found = set()
    for node in ast.walk(_without_type_checking(ast.parse(source))):
        if isinstance(node, ast.ImportFrom) and node.module == "coordcheck":
            found |= {alias.name for alias in node.names if alias.name in ORDER}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("coordcheck."):
            found.add(str(node.module).removeprefix("coordcheck."))
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("coordcheck.") for a in node.names if a.name.startswith("coordcheck.")}
    return found


def _without_type_checking(tree: ast.Module) -> ast.Module:
    """The tree without its `if TYPE_CHECKING:` blocks, which are annotations and not imports."""
    tree.body = [n for n in tree.body if not (isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING")]
    return tree


def wrong_way(name: str, source: str) -> set[str]:
    return {other for other in imported(source) if ORDER.index(other) >= ORDER.index(name)}


SOURCES = {module_name(path): path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"}


def test_every_module_has_its_place():
    assert set(SOURCES) == set(ORDER)


@pytest.mark.parametrize("name", SOURCES)
def test_a_module_imports_only_from_its_left(name):
    assert wrong_way(name, SOURCES[name].read_text(encoding="utf-8")) == set()


def test_the_import_test_can_fail():
    assert wrong_way("slopes", "def f():\n    from coordcheck.report import Report\n") == {"report"}
    assert wrong_way("text", "from coordcheck import figures\n") == {"figures"}


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


HEAVY = ("torch", "matplotlib", "pandas", "numpy", "scipy", "seaborn", "rich")


def loaded(statement: str) -> set[str]:
    printed = run_python(f"{statement}\nimport sys\nprint(*[m for m in {HEAVY!r} if m in sys.modules])")
    return set(printed.split())


def test_importing_the_package_and_the_command_line_is_light():
    assert loaded("import coordcheck, coordcheck.cli; coordcheck.options.parser()") == set()


def test_the_light_import_test_can_fail():
    assert "torch" in loaded("import coordcheck; coordcheck.check")


def test_a_check_does_not_load_matplotlib():
    assert "matplotlib" not in loaded("import coordcheck.checks, coordcheck.demo")


def test_saved_checks_are_read_without_torch():
    statements = "; ".join(f"import coordcheck.{name}" for name in WITHOUT_TORCH)
    run_python(f"import sys; sys.modules['torch'] = None; {statements}")


def test_public_names_are_few_and_documented():
    assert len(coordcheck.__all__) <= 20
    for name in coordcheck.__all__:
        assert inspect.getdoc(getattr(coordcheck, name)), name


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'chek'"):
        coordcheck.chek  # noqa: B018  # the access is the test


def test_the_main_verb_documents_every_argument():
    documented = inspect.getdoc(coordcheck.check)
    for name in inspect.signature(coordcheck.check).parameters:
        assert f"{name}:" in documented or f"`{name}`" in documented
