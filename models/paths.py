"""Where models lie. Imports nothing heavy."""

from pathlib import Path


def model_path(name: str) -> str:
    """`embedded/<name>` is shipped beside this file; the Hub client gets anything else as it is."""
    shipped = Path(__file__).parent / name
    return str(shipped) if name.startswith("embedded/") and shipped.is_dir() else name
