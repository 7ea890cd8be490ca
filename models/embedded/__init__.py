"""The two models that ship with the package: a weak student base and a stronger teacher, one tokenizer.

Recipes name them `embedded/student` and `embedded/teacher`. `make embedded-models` trains both again.
"""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def student_path() -> Path:
    """Folder of the student base: config, safetensors, tokenizer, model card."""
    return FOLDER / "student"


def teacher_path() -> Path:
    """Folder of the teacher: config, safetensors, tokenizer, model card."""
    return FOLDER / "teacher"
