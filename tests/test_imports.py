"""The house: imports point down, siblings do not know each other, files stay short, `check` and `plan` stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# what may import what is below it; models.embedded makes the shipped models and is imported by nobody
LAYERS = {"recipes": 2, "sft": 1, "rl": 1, "evals": 1, "models.embedded": 1, "models": 0, "rewards": 0}
MAX_LINES = 460
"""About 400 is the rule; the rest is what one more table may take."""
MODULES = sorted({path for layer in LAYERS for path in (ROOT / layer.replace(".", "/")).rglob("*.py")})


def layer_of(module: str) -> str | None:
    found = [layer for layer in LAYERS if module == layer or module.startswith(f"{layer}.")]
    return max(found, key=len, default=None)


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


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_only(path):
    own = layer_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    wrong = {
        module
        for module in imports(path)
        if (other := layer_of(module)) is not None and other != own and LAYERS[other] >= LAYERS[own]
    }
    assert not wrong, f"{own} must not import {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_short(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{lines} lines; split it"


def test_only_recipes_know_yaml():
    readers = [path for path in MODULES if any(name.startswith(("ruamel", "yaml")) for name in imports(path))]
    assert {path.relative_to(ROOT).parts[0] for path in readers} == {"recipes"}


HEAVY = ("torch", "transformers", "vllm", "trl", "peft", "datasets", "sympy", "scipy", "matplotlib", "numpy")


@pytest.mark.parametrize("command", [["check"], ["plan", "40d"], ["plan", "40d", "--scale", "gpu"], ["--help"]])
def test_what_answers_at_once_imports_nothing_heavy(command):
    text = f"""
import sys
from recipes.cli import main
sys.argv = ["orchestra", *{command!r}]
code = main()
heavy = sorted(set({HEAVY!r}) & set(sys.modules))
sys.exit(f"imported {{heavy}}" if heavy else code)
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
