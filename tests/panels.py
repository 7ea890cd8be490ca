"""Panels of small adapters, written without torch, and what can go wrong while one is changed."""

import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from models.experts import Lineage, Panel, Record, expert_of, router_files, router_folder, write_panel

STUDENT = "embedded/student"
WIDTHS = {"q_proj": (6, 4), "mlp": (6, 8)}


def adapter(folder, seed, *, rank=2, widths=None, stem="base_model.model.model.layers", **config):
    """A PEFT folder of an adapter on two layers; widths: of each target, (in, out)."""
    draw = np.random.default_rng(seed)
    tensors = {}
    for layer in range(2):
        for target, (inner, outer) in (widths or WIDTHS).items():
            for part, shape in (("A", (rank, inner)), ("B", (outer, rank))):
                name = f"{stem}.{layer}.{target}.lora_{part}.weight"
                tensors[name] = draw.standard_normal(shape).astype(np.float32)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "base_model_name_or_path": STUDENT} | config
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return folder


def router(folder, names):
    """Files that stand for a router which knows these arms."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "router.json").write_text(json.dumps({"arms": list(names)}))
    return folder


def known_router(folder, names):
    """The files of a router that knows these experts, in a folder; each row has other weights."""
    from models import router as routers

    rows, one = np.arange(4 * (len(names) + 3), dtype=np.float32).reshape(-1, 4), np.float32(1)
    folder.mkdir(parents=True)
    made = routers.Router(
        names=("base", *names), layer=1, mean_H=rows[-1], scale_H=rows[-2], threshold=0.0,
        rows=tuple(routers.Row(row, one, one, one) for row in rows[:-2]),
    )  # fmt: skip
    made.write(folder)
    return folder


def rerouting(folder, panel, scratch):
    """A `Reroute` of the panel's router; those of earlier panels lie beside it."""

    def reroute(old, new):
        names = json.loads((router_folder(folder, panel) / "router.json").read_text())["arms"]
        return router(scratch / f"{old}-{new}", [new if name == old else name for name in names if new or name != old])

    return reroute


def write(folder, scratch, names=("algebra", "mlp"), routed=False):
    """A panel of experts, each of its own rank and domain."""
    sources = {name: adapter(scratch / name, seed, rank=2 + seed) for seed, name in enumerate(names)}
    record = Record(0.5, 0.45, 0.55, 200, "generator")
    experts = tuple(
        expert_of(source, name, (name,), Lineage("train", ("traces",)), record) for name, source in sources.items()
    )
    made = router(scratch / "router", ["base", *names]) if routed else None
    panel = Panel(STUDENT, "", experts, router_files(made) if made else None)
    return write_panel(folder, panel, sources, made, copy=True)


def with_one_removed(scratch):
    """A panel of two experts and a router, with a third one removed before."""
    folder = scratch / "panel"
    whole = write(folder, scratch / "made", ("algebra", "mlp", "gone"), routed=True)
    made = router(scratch / "less", ["base", "algebra", "mlp"])
    less = replace(whole, experts=whole.experts[:2], router=router_files(made), change="removed 'gone'", before=whole)
    write_panel(folder, less, router=made)
    return folder


def tree(folder):
    """Every path below a folder, with the contents of files."""
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


def again(folder, to):
    """The folder once more, in the place of what is there."""
    shutil.rmtree(to, ignore_errors=True)
    return Path(shutil.copytree(folder, to))


CREATING = ("open", "os.mkdir", "os.rename", "os.link")
REMOVING = ("os.remove", "os.rmdir")


def in_a_fork(work, happens, events=(*CREATING, *REMOVING), after=0, once=False):
    """Do this in a process of its own, where `happens()` comes in place of each operation on files after so many.

    Returns:
        (its code: 0 where it came to its end, 1 after an OSError, -9 killed; whether anything happened).
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(event, arguments):
            nonlocal seen
            if event in events and (event != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
                seen += 1
                if seen == after + 1 or (seen > after and not once):
                    os.write(writer, b"!")
                    happens()

        code = 70
        try:
            sys.addaudithook(hook)
            work()
            code = 0
        except OSError:
            code = 1
        finally:
            os._exit(code)
    os.close(writer)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with os.fdopen(reader, "rb") as pipe:
        return code, bool(pipe.read())


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def failing(number):
    """A disk that says this errno."""

    def fail():
        raise OSError(number, os.strerror(number))

    return fail
