"""Installed from a wheel the program finds its own packages and recipes, whatever lies where the user works."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ("orchestra", "sft", "rl", "evals", "models", "rewards", "settings", "recipes")
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
TRAP = "raise ImportError('this file is the user\\'s own')\n"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what a wheel of this tree puts into site-packages."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in SOURCES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    done = subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(out)
    return out


@pytest.fixture(params=["empty", "hostile"])
def place(request, tmp_path):
    """A folder to work in: an empty one, or one with files and folders of the program's own names."""
    if request.param == "hostile":
        for name in ("models", "evals", "rewards", "settings"):
            (tmp_path / f"{name}.py").write_text(TRAP)
        for name in ("rl", "sft", "recipes"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").write_text(TRAP)
    return tmp_path


def orchestra(installed: Path, place: Path, *arguments: str, timeout: int = 120) -> subprocess.CompletedProcess:
    """As `python -m orchestra` does, the user's folder first on the path."""
    environment = os.environ | {"PYTHONPATH": f"{place}{os.pathsep}{installed}"}
    return subprocess.run(
        [sys.executable, "-m", "orchestra", *arguments],
        cwd=place, env=environment, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip


def test_one_name_is_installed(installed):
    names = {path.name for path in installed.iterdir() if path.suffix not in (".whl", ".dist-info")}
    assert names == {"orchestra"}


def test_it_is_the_wheels_program_that_runs(installed, place):
    text = "import orchestra, models.paths, rewards.math.domain; print(orchestra.__file__, models.paths.__file__)"
    environment = os.environ | {"PYTHONPATH": f"{place}{os.pathsep}{installed}"}
    done = subprocess.run([sys.executable, "-c", text], cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count(str(installed)) == 2, done.stderr


def test_check_plan_verify(installed, place):
    done = orchestra(installed, place, "check")
    assert done.returncode == 0 and "40d at scale embedded: 6 stages, valid" in done.stdout, done.stderr
    done = orchestra(installed, place, "plan", "40d", "--scale", "embedded")
    assert done.returncode == 0 and "fits this machine" in done.stdout, done.stderr
    # the verifier of the wheel, too
    done = orchestra(installed, place, "verify", "--gold", r"\sqrt{5+2\sqrt{6}}", "--answer", r"\boxed{\sqrt2+\sqrt3}")
    assert done.returncode == 0 and "correct" in done.stdout, done.stderr


@pytest.mark.slow
def test_run(installed, place):
    few = ("--set", "stages.*.steps=2", "--set", "problems.test_limit=12", "--set", "stages.traces.problems=40")
    done = orchestra(installed, place, "run", "40d", "--scale", "embedded", *few, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    shown = orchestra(installed, place, "show", "40d-embedded", "--json")
    assert [row["name"] for row in json.loads(shown.stdout)][-1] == "release"
