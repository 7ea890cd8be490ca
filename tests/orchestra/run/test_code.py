"""The import closure by which a fingerprint knows a stage's code, on a copy of the program whose files are edited."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orchestra.run.code import _digest, _imports, closure

ROOT = Path(__file__).parents[3]
PACKAGES = ("orchestra", "sft", "rl", "evals", "models", "rewards", "settings", "recipes")
STAGES = ["base", "distill", "evaluate", "export", "grow", "grpo", "merge", "mixture", "panel", "preflight", "probe",
          "route", "sft", "solutions"]  # fmt: skip
PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
from orchestra.run.code import closure
print(json.dumps({kind: closure(f"orchestra.stages.{kind}", "math") for kind in sys.argv[2:]}))
heavy = sorted({"torch", "trl", "vllm", "sympy"} & set(sys.modules))
assert not heavy, f"walking imported {heavy}"
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("program")
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__", "*.safetensors")
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    return folder


def closures(folder: Path) -> dict[str, dict[str, str]]:
    command = [sys.executable, "-P", "-c", PROGRAM, str(folder), *STAGES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def before(copy):
    return closures(copy)


def changed(copy: Path, before: dict, file: str, more: str = "\nADDED = 1\n") -> list[str]:
    """The kinds whose code is another after this is added to a file; the file is then put back."""
    path = copy / file
    text = path.read_text()
    path.write_text(text + more)
    try:
        after = closures(copy)
    finally:
        path.write_text(text)
    return [kind for kind in STAGES if after[kind] != before[kind]]


@pytest.mark.parametrize(
    ("file", "kinds"),
    [
        ("orchestra/stages/grpo.py", ["grpo"]),
        ("orchestra/stages/distill.py", ["distill"]),
        ("rl/trainer.py", ["grpo"]),
        ("rl/batches.py", ["grpo"]),
        ("sft/train.py", ["grow", "sft"]),
        ("sft/distill.py", ["distill", "grow", "grpo", "merge", "preflight", "route", "sft", "solutions"]),
        ("evals/statistics.py", [kind for kind in STAGES if kind != "solutions"]),
        ("models/checkpoint.py", ["export"]),
        ("rewards/math/domain.py", STAGES),
        ("orchestra/work/resources.py", STAGES),
        ("models/base.py", STAGES),
        ("orchestra/report/page.py", []),
        ("orchestra/report/charts.py", []),
        ("orchestra/plan/estimate.py", []),
        ("orchestra/config/checks.py", []),
        ("orchestra/run/runner.py", []),
        ("orchestra/cli.py", []),
    ],
)
def test_what_an_edit_changes(copy, before, file, kinds):
    assert changed(copy, before, file) == kinds


def test_comments_and_docstrings_change_nothing(copy, before):
    assert changed(copy, before, "orchestra/stages/grpo.py", "\n# a remark\n'''and a text'''\n") == []


def test_a_helper_counts_as_soon_as_it_is_imported(copy, before):
    (copy / "rl" / "helper.py").write_text("def helped():\n    from rl import further\n")
    (copy / "rl" / "further.py").write_text("")
    assert changed(copy, before, "rl/helper.py") == []
    path = copy / "rl" / "batches.py"
    text = path.read_text()
    path.write_text(text + "\n\ndef late():\n    import rl.helper\n")
    try:
        own = closures(copy)
        assert {"rl.helper", "rl.further"} <= set(own["grpo"]) and "rl.helper" not in own["sft"]
        assert changed(copy, own, "rl/further.py") == ["grpo"]
    finally:
        path.write_text(text)


def test_what_only_type_checkers_import_does_not_count(copy, before):
    more = "\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import sft.mixing\nelse:\n    import sft.train\n"
    path = copy / "rl" / "kl.py"
    text = path.read_text()
    path.write_text(text + more)
    try:
        found = set(closures(copy)["grpo"])
    finally:
        path.write_text(text)
    assert "sft.train" in found and "sft.mixing" not in found


def test_the_children_that_compare_formulas_count(before):
    """Started as a process of their own, not imported."""
    assert any("symbolic" in name and "work" in name for name in before["grpo"])


def test_only_who_looks_on_does_not_count(before):
    """Every module but those that read recipes, plan, run and report, the command line, and what made the models."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.read_text(encoding="utf-8").strip() and path.stem != "__init__"
    }
    left_out = modules - {name for names in before.values() for name in names}
    # settings are in the fingerprint by their values; the cases are the verifier's tests
    known = {"rewards.settings", "rewards.math.cases", "orchestra.text"}
    # what compares finished runs, and sets of traces
    known |= {"evals.arms", "evals.gains", "evals.seeds", "sft.cards"}
    onlookers = ("orchestra.config.", "orchestra.plan.", "orchestra.report.", "orchestra.run.", "orchestra.cli",
                 "orchestra.__main__", "models.embedded.")  # fmt: skip
    assert {name for name in left_out if not name.startswith(onlookers)} <= known
    assert not {name for names in before.values() for name in names if name.startswith(onlookers)}
    assert {"rewards.scoring", "rewards.formats", "rewards.verdict", "rewards.math.equal"} <= set(before["grpo"])
    assert "rl.trainer" not in before["sft"] and "sft.train" not in before["grpo"], "each what it runs"


def test_another_domains_code_is_taken_instead(before):
    math, none = (set(closure("orchestra.stages.grpo", domain)) for domain in ("math", "nowhere"))
    assert none < math and all(name.startswith("rewards.") for name in math - none)
    assert "rewards.math.domain" in math - none


def test_where_a_name_leads(tmp_path):
    """`from a import b` may name a module b; a relative import means the package's own."""
    path = tmp_path / "kind.py"
    path.write_text(
        "import a.b, c as d\nfrom e import f as g\nfrom . import h\nfrom .i import j\nfrom ..k import l\n"
        "import typing\nif typing.TYPE_CHECKING:\n    import m\nelif d:\n    import n\n"
        "class A:\n    def f(self):\n        import o\n"
    )
    assert _imports(path, "pack.age.kind") == {
        "a.b", "c", "e", "e.f", "pack.age", "pack.age.h", "pack.age.i", "pack.age.i.j", "pack.k", "pack.k.l", "typing",
        "n", "o",
    }  # fmt: skip


def test_any_other_word_of_the_code_counts(tmp_path):
    """Comments, docstrings and layout aside: names, numbers, texts that are values, defaults, decorators, order."""
    one = '''
"""Doc."""
import a
@mark
class C:
    """Doc."""
    x = "text"
    async def g(self, n=1):
        """Doc."""
        note(1)
        return [n, "text"]
'''
    same = (one.replace("Doc", "Word"), one.replace("import a", "import  a  # b"), one.replace("\n@", "\n\n\n@"))
    other = (
        one.replace("mark", "sign"), one.replace("n=1", "n=2"), one.replace('x = "text"', 'x = "word"'),
        one.replace('"text"]', '"word"]'), one.replace("async def", "def"), one.replace('[n, "text"]', '["text", n]'),
        one.replace("note(1)", "note(2)"), one.replace("        note(1)\n", ""),
        one.replace("class C", "class D"), one.replace("import a", "import a as b"),
    )  # fmt: skip

    def digest(number, text):
        path = tmp_path / f"{number}.py"
        path.write_text(text)
        return _digest(path)

    digests = [digest(number, text) for number, text in enumerate((one, *same, *other))]
    assert set(digests[:4]) == {digests[0]}
    assert len(set(digests)) == 1 + len(other)
