"""The command line with further kinds of stages, or domains, from a folder: what a plug-in would be.

python tests/driver.py stages=FOLDER rewards=FOLDER -- run recipe.yaml ...
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    sys.path.insert(0, str(ROOT))
    at = sys.argv.index("--")
    import orchestra.stages
    import rewards

    packages = {"stages": orchestra.stages, "rewards": rewards}
    for argument in sys.argv[1:at]:
        name, _, folder = argument.partition("=")
        packages[name].__path__.append(folder)
    from orchestra.cli import main as command_line

    sys.argv = ["orchestra", *sys.argv[at + 1 :]]
    return command_line()


if __name__ == "__main__":
    sys.exit(main())
