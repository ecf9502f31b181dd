"""A run as bytes: another process sees the user's modules as this one does, without their files."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import cloudpickle
import pytest

from coordcheck.training.payloads import packed, unpacked

FILES = {
    "main_part.py": """
        import threading
        import helpers
        from parts import deep
        from parts.deep import Color, Layer
        RATE = 1.0
        LOCK = threading.Lock()
        def answer():
            import late
            from parts import later
            from parts.deep import CFG as again
            helpers.TOLD = "by another module"
            return [helpers.told(), helpers.double(RATE), deep.CFG["x"], again is deep.CFG, Layer().color is Color.RED,
                    late.WORD, later.WORD, helpers.back(), later.late is late]
        def locked():
            with LOCK:
                return "locked"
    """,
    "helpers.py": """
        import main_part
        FACTOR = 2.0
        TOLD = None
        LOG = open("helpers.py")
        def double(x):
            return FACTOR * x
        def told():
            return TOLD
        def back():
            return main_part.RATE
    """,
    "late.py": "import parts.later\nWORD = 'late'",
    "parts/__init__.py": "",
    "parts/later.py": "import late\nWORD = 'later'",
    "parts/deep.py": """
        from dataclasses import dataclass
        from enum import Enum
        CFG = {"x": 1}
        class Color(Enum):
            RED = 1
        @dataclass
        class Layer:
            color: Color = Color.RED
    """,
}
SEND = """
import pathlib, sys
sys.path.insert(0, ".")
import main_part, helpers, late, parts.deep, parts.later
from coordcheck.training.payloads import packed
main_part.RATE, helpers.FACTOR, parts.deep.CFG["x"], late.WORD = 3.0, 5.0, 7, "later than its import"
pathlib.Path(sys.argv[1]).write_bytes(packed(getattr(main_part, sys.argv[2])))
"""
RECEIVE = """
import pathlib, sys
from coordcheck.training.payloads import unpacked
function, note = unpacked(pathlib.Path(sys.argv[1]).read_bytes())
print(function(), note)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text), encoding="utf-8")
    return tmp_path


def run(code: str, folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-B", "-c", code, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_modules_that_name_each_other_arrive_as_they_are_here_and_need_no_file(folder: Path):
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    run(SEND, folder, "payload", "answer")
    told = run(RECEIVE, elsewhere, "../payload")
    assert told == "['by another module', 15.0, 7, True, True, 'later than its import', 'later', 3.0, True]"


def test_a_module_that_is_run_by_name_is_sent_with_what_it_imports_beside_it(folder: Path):
    (folder / "parts" / "run.py").write_text(textwrap.dedent(RUN), encoding="utf-8")
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    command = [sys.executable, "-B", "-m", "parts.run", "elsewhere/payload"]
    subprocess.run(command, cwd=folder, check=True, timeout=60)
    assert run(RECEIVE, elsewhere, "payload") == "(7, 'later')"


RUN = """
    import pathlib, sys
    from . import deep
    import late
    from coordcheck.training.payloads import packed
    def build():
        from .later import WORD
        return deep.CFG["x"], WORD
    if __name__ == "__main__":
        deep.CFG["x"] = 7
        pathlib.Path(sys.argv[1]).write_bytes(packed(build))
"""


def test_what_cannot_be_sent_is_named_and_the_modules_are_imported_there(folder: Path):
    run(SEND, folder, "payload", "locked")
    told = run("import sys; sys.path.insert(0, '.')" + RECEIVE, folder, "payload")
    assert told.startswith("locked other processes import your modules anew, and see no change made to them since")
    assert "main_part.LOCK (lock)" in told


def test_what_cannot_be_sent_at_all_is_refused_by_name():
    lock = threading.Lock()
    with pytest.raises(TypeError, match=r"cannot pickle '_thread.lock' object"):
        packed(lambda: lock)


def test_nothing_stays_registered_and_this_process_keeps_its_modules():
    before = cloudpickle.list_registry_pickle_by_value(), sys.modules[__name__]
    here, note = unpacked(packed(test_what_cannot_be_sent_at_all_is_refused_by_name))
    assert (cloudpickle.list_registry_pickle_by_value(), sys.modules[__name__]) == before
    assert here is not test_what_cannot_be_sent_at_all_is_refused_by_name
    assert note == ""
