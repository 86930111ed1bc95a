"""The facts that make a result verifiable: settings, costs, commit, hardware, versions, data."""

import hashlib
import math
import os
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from attnconv.config import REPOSITORY
from attnconv.errors import counted, is_of_user
from attnconv.models.build import import_target
from attnconv.runs.records import FORMAT
from attnconv.settings.limits import from_elsewhere

if TYPE_CHECKING:
    from attnconv.training.setup import Setup

COMMIT = "ATTNCONV_COMMIT"  # for a copy without git history: the output of git describe --always --abbrev=40 --dirty
ANOTHER_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX")  # as hooks set them
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")  # CPU features that decide which kernels run
# The part of a description that may change between two starts of a run.
OF_A_START = ("device", "cpu", "processes", "commit", "dirty", "versions", "code")
MAKERS = {"AuthenticAMD": "AMD", "GenuineIntel": "Intel"}
CLEAR_REFS = "/proc/self/clear_refs"  # proc(5): 5 resets the peak of this process


@cache
def commit() -> tuple[str | None, bool | None]:
    """Return the checked-out commit, and whether the tree differs from it (new files included).

    The first answer stays, because the process does not load the code again if the tree changes later.
    Outside a checkout, return the value of ATTNCONV_COMMIT, or None.
    """
    try:
        if Path(_git("rev-parse", "--show-toplevel").strip()).resolve() == REPOSITORY.resolve():
            return _git("rev-parse", "HEAD").strip(), bool(_git("status", "--porcelain").strip())
    except (OSError, subprocess.CalledProcessError):
        pass  # no git, or no checkout
    given = os.environ.get(COMMIT)  # also for a copy inside of another project's checkout
    return (given.removesuffix("-dirty"), given.endswith("-dirty")) if given else (None, None)


def _git(*arguments: str) -> str:
    # Without optional locks: otherwise a run that is killed now would leave the repository locked.
    command = ["git", "--no-optional-locks", *arguments]
    environment = {name: value for name, value in os.environ.items() if name not in ANOTHER_REPOSITORY}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True).stdout


def describe_device(device: torch.device) -> str:
    """Return the hardware in words, e.g. "NVIDIA H200" or "AMD EPYC, 2 threads"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"{describe_cpu()['model']}, {counted(torch.get_num_threads(), 'thread')}"
    return f"{device.type} on {platform.machine()}"


def describe_cpu() -> dict[str, Any]:
    """Return the CPU: `model` in words, `family`, its features among FLAGS, and the `threads` that PyTorch uses.

    Several processors may share one model name; family and flags decide which kernels run, and so affect rounding.
    """
    path = Path("/proc/cpuinfo")  # Linux only
    return {**parse_cpuinfo(path.read_text("utf-8") if path.exists() else ""), "threads": torch.get_num_threads()}


def parse_cpuinfo(text: str) -> dict[str, Any]:
    """Return model, family and flags from /proc/cpuinfo, or Python's own information without flags if it lacks them."""
    entries: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        entries.setdefault(name.strip(), value.strip())
    machine, family = platform.machine(), "{vendor_id} family {cpu family} model {model}"
    known = {"vendor_id", "cpu family", "model"} <= entries.keys()
    maker = MAKERS.get(entries.get("vendor_id", ""), entries.get("vendor_id"))
    return {
        "model": entries.get("model name") or platform.processor() or machine,
        "family": family.format_map(entries | {"vendor_id": maker}) if known else machine,
        "flags": [flag for flag in FLAGS if flag in entries.get("flags", "").split()],
    }


def forget_peak_memory(device: torch.device) -> None:
    """Forget the peak so far, which may be that of another run of this process; not possible on macOS."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif os.access(CLEAR_REFS, os.W_OK):
        Path(CLEAR_REFS).write_text("5", "utf-8")


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: on a GPU that of PyTorch's tensors, on a CPU that of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")  # Linux: ru_maxrss may be the peak of the process that started this one
    if status.exists() and (found := re.search(r"^VmHWM:\s+(\d+) kB", status.read_text("utf-8"), re.MULTILINE)):
        return 1024 * int(found[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, Linux KiB


def code_of_user(parts: Iterable[object]) -> dict[str, str | None]:
    """Return the hash of each file of code that defines a network, or that such a file imports, by module.

    Packages, and files of the commit, are left out. The hash is None for a class without a file, as of a notebook.

    Args:
        parts: classes and functions of the network.
    """
    found: dict[str, ModuleType] = {}
    waiting = [sys.modules.get(getattr(part, "__module__", "")) for part in parts]
    while waiting:
        module = waiting.pop()
        file = getattr(module, "__file__", None)
        if module is None or module.__name__ in found or (file and not is_of_user(file)):
            continue
        if file is None and module.__name__ != "__main__":  # of the interpreter
            continue
        found[module.__name__] = module
        values = list(vars(module).values()) if file else []
        others = (value if isinstance(value, ModuleType) else _module_of(value) for value in values)
        waiting += [other for other in others if getattr(other, "__file__", None)]
    hashes = {name: _hash_of(module) for name, module in sorted(found.items())}
    return {name: digest for name, digest in hashes.items() if digest != TRACKED}


TRACKED = "tracked"  # a file of the commit


def _module_of(value: object) -> ModuleType | None:
    name = getattr(value, "__module__", None)
    return sys.modules.get(name) if isinstance(name, str) else None


@cache
def _hash_of(module: ModuleType) -> str | None:
    """Return the hash of a module's file when this is first asked, because a later change is not loaded."""
    if module.__file__ is None:
        return None
    file = Path(module.__file__).resolve()
    try:
        tracked = _git("ls-files", "--", str(file)).strip() if file.is_relative_to(REPOSITORY) else ""
    except (OSError, subprocess.CalledProcessError):
        tracked = ""
    return TRACKED if tracked else hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def measured_on(device: torch.device) -> dict[str, Any]:
    """Return what a measurement must be quoted with: device in words, commit, uncommitted changes, versions."""
    head, dirty = commit()
    return {"device": describe_device(device), "commit": head, "dirty": dirty, "versions": versions()}


def versions() -> dict[str, Any]:
    """Return the versions that a number may depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "numpy": version("numpy"),
        "timm": version("timm"),
        "platform": sys.platform,
    }


def describe(setup: "Setup") -> dict[str, Any]:
    """Return the part of result.json that does not depend on the outcome."""
    config, (head, dirty) = setup.config, commit()
    code = _code(setup)
    if None in code.values() and not dirty:
        dirty = None
    return {
        "format": FORMAT,
        "name": config.name,
        "model": config.model["name"],
        "recipe": config.recipe.name,
        "scale": config.scale.name,
        "data": config.data.name,
        "seed": config.seed,
        "fraction": config.data.fraction,
        "equal": config.data.equal,
        "subset_seed": config.data.subset_seed,
        "holdout": config.data.holdout,
        "epochs": config.epochs,
        "train_images": len(setup.data.train),
        "steps": config.epochs * math.ceil(setup.data.epoch_images / config.recipe.batch_size),
        **setup.costs,
        "precision": setup.precision,
        "device": describe_device(setup.device),
        "cpu": describe_cpu(),
        "processes": setup.processes.count,
        "commit": head,
        "dirty": dirty,
        "versions": versions(),
        **({"code": code} if code else {}),
        "data_origin": setup.data.origin,
        "data_hash": setup.data.source_sha256,
        "subset_hash": setup.data.subset_sha256,
        **_matched(setup),
    }


def start_of(description: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a description that may change when the run resumes."""
    return {key: description[key] for key in OF_A_START if key in description}


def over_starts(starts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return whether any start of a run had uncommitted changes, and all starts (`starts`) if they differ.

    `dirty` is None if that is not known of some start. A network of the user, which no commit describes, counts as
    changed if its code differs between two starts.
    """
    dirty = {start["dirty"] for start in starts} | {True for _ in changed_code(starts)}
    found = {"dirty": True if True in dirty else None if None in dirty else False}
    return found | ({"starts": starts} if any(start != starts[0] for start in starts) else {})


def changed_code(starts: list[dict[str, Any]]) -> list[str]:
    """Return the modules of the user's network whose code differs between two starts of a run."""
    codes = [start.get("code") or {} for start in starts]
    names = {name for code in codes for name in code}
    return sorted(name for name in names if len({code[name] for code in codes if name in code}) > 1)


def _code(setup: "Setup") -> dict[str, str | None]:
    """Return the code of a network of the user; empty for other networks."""
    if not from_elsewhere(setup.config.model):
        return {}
    target = import_target(setup.config.model["_target_"])
    return code_of_user([target, *(type(module) for module in setup.model.modules())])


def _matched(setup: "Setup") -> dict[str, Any]:
    """Return the result of `match`; empty without it."""
    match = setup.match
    if match is None:
        return {}
    widths = {key: match.node[key] for key in ("width", "hidden") if key in match.node}
    budget = {"budget": match.budget, "model": setup.config.match_model, "target": match.target}
    return {"match": {**budget, "achieved": match.achieved, "difference": match.difference, **widths}}
