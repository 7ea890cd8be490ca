"""What an export costs: the policy of a finished run against its files, for each base and dtype; and memory.

    python -m benchmarks.exports RUN [--problems N] [--no-large]

RUN is a finished run (`runs/40d-embedded`). Each kind of export is written, loaded again by vLLM and by transformers,
and compared with the trained policy (evals/fidelity.py), without limits. Then a random model of 1.2 billion parameters
in two shards is merged, in a process of its own, whose peak of memory is told. Written: benchmarks/exports.md.
"""

import argparse
import multiprocessing
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from evals.fidelity import Reloaded
from orchestra.cli_export import export_run
from orchestra.work.exported import ExportRecord

HERE = Path(__file__).parent
DTYPES = ("float32", "float16", "bfloat16")
NO_LIMITS = {"max_kl": 100.0, "min_agreement": 0.0, "max_accuracy_loss": 1.0}
MERGE = """
import resource, sys, time
from pathlib import Path
import torch
from models.merge import merged_shards, write_merged
from models.settings import Model
base, adapter, folder, kind = sys.argv[1:]
start, model = time.perf_counter(), Model(base=base, dtype="bfloat16")
write_merged(model, merged_shards(model, Path(adapter), torch.bfloat16, kind), Path(folder), torch.bfloat16)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, time.perf_counter() - start)
"""


def measured(run: Path, problems: int) -> Iterator[ExportRecord]:
    """Each base with each dtype, in a process of its own: there is one vLLM in a process."""
    alone = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, alone, max_tasks_per_child=1) as processes:
        for base in ("dequantized", "original"):
            for dtype in DTYPES:
                to = Path(folder) / f"{base}-{dtype}"
                options = {"base": base, "dtype": dtype, "check": {"problems": problems, **NO_LIMITS}}
                print(processes.submit(export_run, run, str(to), None, options, force=True).result())
                record = ExportRecord.read(to)
                assert record is not None
                yield record


def row(record: ExportRecord) -> str:
    """Of the table."""
    found = record.fidelity
    by = {(one.engine, one.of): one for one in found.reloaded}
    cells = [_cell(by.get(key)) for key in (("vllm", "sampled"), ("vllm", "greedy"), ("transformers", "greedy"))]
    return f"| {record.merge_base} | {record.dtype} | {found.kl:.1e} | {found.agreement:.2%} | {' | '.join(cells)} |"


def _cell(one: Reloaded | None) -> str:
    if one is None:
        return ""
    lost = one.difference
    return (
        f"{100 * lost.difference:+.1f} [{100 * lost.low:+.1f}, {100 * lost.high:+.1f}], "
        f"{one.changed} of {lost.n} otherwise"
    )


def large(folder: Path) -> list[str]:
    """Peak memory and time of merging 1.2 billion parameters, a line for each base."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    from large import write

    path, adapter = write(folder)
    shard = max(file.stat().st_size for file in path.glob("*.safetensors"))
    lines = []
    for kind in ("dequantized", "original"):
        command = [sys.executable, "-c", MERGE, str(path), str(adapter), str(folder / kind), kind]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=HERE.parent)
        peak, seconds = map(float, done.stdout.split()[-2:])
        lines.append(
            f"| {kind} | {peak / 2**30:.2f} GiB | {shard / 2**30:.2f} GiB | {seconds:.0f} s |"
            + ("" if peak < shard + 2**30 else " more than the largest shard and a GiB")
        )
    return lines


def report(records: Sequence[ExportRecord], memory: Sequence[str]) -> str:
    """Markdown."""
    lines = [
        "# Exports against the policy that was trained",
        "",
        "KL(policy || files) in nats a token, exact over the vocabulary, and the share of places at which both put the",
        "same token first, in float32; accuracy of the files, loaded again from the disk in their own arithmetic,",
        "minus the policy's own on the same problems in points, with 95 % intervals, and how many are answered",
        "otherwise (in any sample). Made by `make bench-exports RUN=...`.",
        "",
        "| base | dtype | KL | top-1 | vLLM, sampled | vLLM, greedy | transformers, greedy |",
        "|---|---|---|---|---|---|---|",
        *map(row, records),
    ]
    if memory:
        lines += [
            "",
            "A random model of 1.24 billion parameters (Llama 3.2 1B's shape, two shards) merged to bfloat16 on a CPU:",
            "",
            "| base | peak memory of the process | largest shard | time |",
            "|---|---|---|---|",
            *memory,
        ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--no-large", action="store_true", help="leave the large model out (3 GB of disk, 2 minutes)")
    arguments = parser.parse_args()
    records = list(measured(arguments.run, arguments.problems))
    memory: list[str] = []
    if not arguments.no_large:
        with tempfile.TemporaryDirectory() as folder:
            memory = large(Path(folder))
    text = report(records, memory)
    (HERE / "exports.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
