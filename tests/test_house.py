"""The house: imports point down, siblings do not know each other, files stay short, `check` and `plan` stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# what may import what is below it; models.embedded makes the shipped models and is imported by nobody
LAYERS = {
    "orchestra": 3, "sft": 2, "rl": 2, "evals": 2, "models.embedded": 2, "models": 1, "rewards": 1, "settings": 0,
}  # fmt: skip
MAX_LINES = 420
"""About 400 is the rule."""
MODULES = sorted(path for layer in LAYERS if "." not in layer for path in (ROOT / layer).rglob("*.py"))


def layer_of(module: str) -> str | None:
    found = [layer for layer in LAYERS if module == layer or module.startswith(f"{layer}.")]
    return max(found, key=len, default=None)


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports(path: Path) -> set[str]:
    """Modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(path.relative_to(ROOT).parts[:-1][: None if node.level < 2 else 1 - node.level])
            module = ".".join(part for part in (package if node.level else "", node.module) if part)
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down_only(path):
    own = layer_of(name_of(path))
    wrong = {
        module
        for module in imports(path)
        if (other := layer_of(module)) is not None and other != own and LAYERS[other] >= LAYERS[own]
    }
    assert not wrong, f"{own} must not import {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_files_stay_short(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{lines} lines; split it"


def test_recipes_hold_only_what_a_user_edits():
    assert {path.suffix for path in (ROOT / "recipes").rglob("*") if path.is_file()} == {".yaml", ".json"}


def test_only_config_knows_yaml():
    readers = [path for path in MODULES if any(name.startswith(("ruamel", "yaml")) for name in imports(path))]
    # the report writes the recipe out as YAML text again, which it does not interpret
    assert {name_of(path) for path in readers} == {"orchestra.config.yamlfile", "orchestra.report.data"}


KINDS = sorted(path.stem for path in (ROOT / "orchestra" / "stages").glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_kind_is_known_outside_its_file(path):
    """No import of a kind's file, no kind's name compared with anything, but in that file."""
    if path.parent.name == "stages":
        others = {f"orchestra.stages.{kind}" for kind in KINDS}
    else:
        others = {f"orchestra.stages.{kind}" for kind in KINDS if kind != path.stem}
    known = {module for module in imports(path) if any(module == one or module.startswith(f"{one}.") for one in others)}
    assert not known
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Compare):
            words = {one.value for one in ast.walk(node) if isinstance(one, ast.Constant)}
            about_kinds = any(isinstance(one, ast.Attribute) and one.attr == "kind" for one in ast.walk(node))
            foreign = words & set(KINDS) - {path.stem if path.parent.name == "stages" else ""}
            assert not (about_kinds and foreign), f"line {node.lineno}: {foreign}"


HEAVY = ("torch", "transformers", "vllm", "trl", "peft", "datasets", "sympy", "scipy", "matplotlib", "numpy")


@pytest.mark.parametrize(
    "command",
    [["check"], ["plan", "40d"], ["plan", "40d", "--scale", "gpu"], ["plan", "40d-beta", "--seeds", "3"], ["--help"]],
)
def test_what_answers_at_once_imports_nothing_heavy(command):
    text = f"""
import sys
from orchestra.cli import main
sys.argv = ["orchestra", *{command!r}]
code = main()
heavy = sorted(set({HEAVY!r}) & set(sys.modules))
sys.exit(f"imported {{heavy}}" if heavy else code)
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
