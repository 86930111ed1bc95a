"""The run folder: the one source of every number; dashboards are views of it.

outputs/<name>/<model>/<scale>-<recipe>/frac<f>/seed<s>/
    data.json        where the data lay, and its hash
    config.yaml      the frozen configuration, with the arithmetic that precision=auto became
    metrics.jsonl    a line per epoch; nothing in it depends on the clock: on a CPU, equal runs have equal bytes
    timing.jsonl     a line per epoch: seconds on the clock, and on the CPU, those of all threads and processes
    heads.jsonl      a line per epoch, the start included: centers and spreads of the heads (models with Gaussian heads)
    heads.png        where the heads look after the last epoch, drawn (attention models)
    attention_maps.npy   the same as numbers, (layers, heads, H, W) float16: what the central pixel attends to, for
                     attention that depends on content the mean over the first 100 test images
    predictions.npy  (N,) the class that the last epoch's network predicts for each test image, in the split's order
    result.json      the outcome; `status` is done, failed or interrupted
    weights.safetensors   the trained weights, once it is done
    probe.json       how convolutional its attention is, if scripts/probe.py was asked
    conversion.json  what became of it as attention, if scripts/conv_to_attention.py was asked
    checkpoints/     the last two (attnconv.runs.checkpoint)
    .lock, .owner    held by the process at work here, and who that is
"""

import io
import json
import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from attnconv.config import Config, to_plain
from attnconv.errors import AlreadyDone, AtWork, RunFolderError
from attnconv.files import forget_unfinished, write_whole
from attnconv.runs.identity import (
    DATA_FILE,
    describe_data,
    differences,
    in_words,
    read_json,
    read_recorded,
    refusal,
)

if TYPE_CHECKING:
    import numpy as np

# Of result.json and of what is next to it; without the key it is 1. 2 added FLOPs, steps and data.equal; 3 predictions,
# maps, CPU seconds and the CPU, and left only centers and spreads in heads.jsonl.
FORMAT = 3

PREPROCESSING_FILE = "preprocessing.json"  # see attnconv.data.preprocessing

# Of the last line of metrics.jsonl; result.json has them too, with an underscore for the stroke.
ACCURACIES = ("val/acc", "val/acc_mirrored", "test/acc", "test/acc_mirrored")


def run_folder_path(config: Config) -> Path:
    """The folder that a configuration owns, relative to the working directory."""
    return Path(config.output, run_name(config))


def run_name(config: Config) -> str:
    """What a run is called: its folder below config.output."""
    return name_of(vars(config) | {part: vars(getattr(config, part)) for part in ("scale", "recipe", "data")})


def name_of(plain: dict[str, Any]) -> str:
    """The name of the run that a config.yaml describes."""
    cell = "{scale[name]}-{recipe[name]}/frac{data[fraction]:g}/seed{seed}".format_map(plain)
    return "{name}/{model[name]}/{cell}".format_map({**plain, "cell": cell})


class RunFolder:
    """Reads and writes one run folder. Nothing is written before `open`."""

    def __init__(self, config: Config):
        self.config = config
        # What config.precision is on this machine, and the hash of what lies in data.root, once they are known.
        self.precision: str | None = None
        self.data_hash: str | None = None
        self.preprocessing: bytes | None = None  # content of preprocessing.json, once it is known
        self.path = run_folder_path(config)
        self.checkpoints = self.path / "checkpoints"
        self.weights = self.path / "weights.safetensors"
        self.heads_picture = self.path / "heads.png"
        # The operating system lets go of it when its owner dies, however it dies. Who only looks whether it is held
        # (attnconv.runs.status) holds it for a moment, hence the second.
        self._lock = FileLock(self.path / ".lock", timeout=1)

    def check(self) -> None:
        """Raise RunFolderError if the run must not or cannot go there, without writing anything.

        Raises:
            RunFolderError: the run is finished, the folder holds another configuration, or it is not writable.
                Of a finished run whose data lay elsewhere, nothing before `data_hash` is known.
        """
        existing = next(parent for parent in (self.path, *self.path.absolute().parents) if os.path.exists(parent))
        if not existing.is_dir() or not os.access(existing, os.R_OK | os.W_OK | os.X_OK):
            raise RunFolderError(f"{existing} is not a writable folder, so {self.path} cannot be made; set output=")
        result = read_json(self.path / "result.json", "status")
        done = result is not None and result["status"] == "done"
        # What is finished takes part in no arithmetic any more: auto asks for the run, whatever it became.
        different = differences(self.path, self.config, None if done else self.precision, self.data_hash)
        if different and not is_empty_failure(self.path):
            raise RunFolderError(refusal(self.path, different, self.config, done))
        if result is not None and done and (self.data_hash is not None or self._knows_data()):
            raise AlreadyDone(
                f"{self.path} is finished already (test accuracy {result['test_acc']:.4f}); "
                "choose another name= or seed=, or delete the folder"
            )
        if (self.checkpoints / "last.pt").exists():
            raise RunFolderError(
                f"{self.path} holds a run of an older version, which cannot go on; choose another name=, or delete it"
            )

    def _knows_data(self) -> bool:
        """Whether the run's data lay where this one's does, so that it need not be read to be known."""
        recorded = read_recorded(self.path)
        return recorded is None or recorded.lies_at(self.config.data)

    def open(self) -> None:
        """Make the folder, take it for this process alone, and write config.yaml.

        Raises:
            AtWork: another process is at work in it.
            RunFolderError: it cannot be written, or see `check`.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            self.check()  # another process may have begun or finished it since the last look
            self._clear_failure()
            forget_unfinished(self.path)
            forget_unfinished(self.checkpoints)
            (self.path / ".owner").write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
            frozen = replace(self.config, precision=self.precision or self.config.precision)
            if self.data_hash is not None:
                write_whole(self.path / DATA_FILE, describe_data(self.config.data, self.data_hash))
            if self.preprocessing is not None:
                write_whole(self.path / PREPROCESSING_FILE, self.preprocessing)
            write_whole(self.path / "config.yaml", OmegaConf.to_yaml(to_plain(frozen)).encode())
            (self.path / "result.json").unlink(missing_ok=True)  # it tells of an earlier sitting, not of this one
        except Timeout as error:
            try:
                who = (self.path / ".owner").read_text().strip()
            except FileNotFoundError:
                who = "another process"
            raise AtWork(f"{who} is at work in {self.path}; wait for it, or choose another name=") from error
        except OSError as error:
            raise RunFolderError(f"{self.path} cannot be written: {error.strerror}; set output=") from error

    def _clear_failure(self) -> None:
        """Make room for this run where one of another configuration left nothing to go on from."""
        different = differences(self.path, self.config, self.precision, self.data_hash)
        if not different:
            return
        print(
            f"{self.path}: starting afresh; the run there ended before its first checkpoint ({in_words(different)})",
            flush=True,
        )
        # What says that there is nothing to keep goes last.
        last = ("result.json", "config.yaml")
        for path in sorted(self.path.iterdir(), key=lambda path: path.name in last):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != ".lock":
                path.unlink()
        self.checkpoints.mkdir()

    def close(self) -> None:
        """Let other processes have the folder."""
        if self._lock.is_locked:
            (self.path / ".owner").unlink(missing_ok=True)
            self._lock.release()

    def append(self, file: str, record: dict[str, Any] | None) -> None:
        """Add one line to a .jsonl file, down to the disk; nothing for no record."""
        if record is None:
            return
        with (self.path / file).open("a") as lines:
            lines.write(_line(record))
            lines.flush()
            os.fsync(lines.fileno())

    def read_lines(self, file: str) -> list[dict[str, Any]]:
        """All whole records of a .jsonl file; none if it is not there. A last line without its end was torn."""
        path = self.path / file
        if not path.exists():
            return []
        try:
            return [json.loads(line) for line in path.read_text().split("\n")[:-1]]
        except ValueError as error:
            raise RunFolderError(f"{path} is damaged ({error}); delete the folder to start afresh") from error

    def forget_after(self, epochs_done: int | None) -> None:
        """Drop the lines of epochs that will be trained again, and torn ones; every line for None."""
        for file in ("metrics.jsonl", "timing.jsonl", "heads.jsonl"):
            if (self.path / file).exists():
                kept = [] if epochs_done is None else self.read_lines(file)
                text = "".join(_line(record) for record in kept if record["epoch"] <= (epochs_done or 0))
                write_whole(self.path / file, text.encode())

    def write_array(self, file: str, array: "np.ndarray") -> None:
        """Write a .npy file, whole or not at all."""
        import numpy as np  # here: who only looks at run folders needs none

        content = io.BytesIO()
        np.save(content, array, allow_pickle=False)
        write_whole(self.path / file, content.getvalue())

    def write_result(self, result: dict[str, Any]) -> None:
        """Write result.json, whole or not at all."""
        write_whole(self.path / "result.json", (json.dumps(result, indent=2) + "\n").encode())


def is_empty_failure(folder: Path) -> bool:
    """Whether a run ended in that folder before its first checkpoint, so that there is nothing to keep."""
    result = read_json(folder / "result.json", "status")
    ended = result is not None and result["status"] in ("failed", "interrupted")
    return ended and not any((folder / "checkpoints").glob("*.pt"))


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"
