"""The run folder: the only source of all numbers; dashboards only show it.

outputs/<name>/<model>/<scale>-<recipe>/frac<f>/seed<s>/
    data.json        where the data was, and its hash
    preprocessing.json   image size, normalization and class names (attnconv.data.dataset.Preprocessing)
    config.yaml      the frozen configuration, with the precision that precision=auto chose
    metrics.jsonl    a line per epoch; it contains no times, so on a CPU equal runs have equal bytes
    timing.jsonl     a line per epoch: wall-clock seconds, and CPU seconds of all threads and processes
    heads.jsonl      a line per epoch, and one for the start: centers and spreads of the heads (Gaussian heads)
    heads.png        a figure of where the heads look after the last epoch (attention models)
    attention_maps.npy   the same as numbers, (layers, heads, H, W) float16: where the central pixel looks; averaged
                     over the first 100 test images if attention depends on content
    predictions.npy  (N,) the class that the final network predicts for each test image, in the split's order
    result.json      the outcome; `status` is done, failed or interrupted
    starts.jsonl     a line per start since the first step: commit, hardware and versions
    weights.safetensors   the trained weights, once the run is done
    probe.json       how convolutional its attention is, written by scripts/probe.py
    conversion.json  its conversion to attention, written by scripts/conv_to_attention.py
    checkpoints/     the last two (attnconv.runs.checkpoint)
    .lock, .owner    held by the process that uses the folder, and the name of that process
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

from attnconv.config import Config, flatten, to_plain
from attnconv.data.root import files_of
from attnconv.errors import AlreadyDone, InUse, RunFolderError
from attnconv.files import forget_unfinished, write_whole
from attnconv.runs.identity import (
    Heads,
    describe_data,
    differences,
    listed,
    read_recorded,
    refusal,
    start_weights,
)
from attnconv.runs.records import (
    ARRAYS,
    DATA_FILE,
    NUMBERS,
    Damaged,
    name_of,
    read_epochs,
    read_finished,
    read_lines,
    read_result,
    require_numbers,
    require_right_answers,
)
from attnconv.runs.status import running_process

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

PREPROCESSING_FILE = "preprocessing.json"  # see attnconv.data.dataset.Preprocessing
LINES = ("metrics.jsonl", "timing.jsonl", "heads.jsonl")
PRODUCTS = ("weights.safetensors", *ARRAYS, "heads.png", "probe.json", "conversion.json")  # of a finished run
OF_FAILURE = ("result.json", "config.yaml")  # say that there is nothing to keep


def run_folder_path(config: Config) -> Path:
    """Return the folder of a configuration's run, relative to the working directory."""
    return Path(config.output, run_name(config))


def run_name(config: Config) -> str:
    """Return the name of a run: its folder below config.output."""
    return name_of(vars(config) | {part: vars(getattr(config, part)) for part in ("scale", "recipe", "data")})


class RunFolder:
    """Read and write one run folder. Nothing is written before `open`."""

    def __init__(self, config: Config):
        self.config = config
        # The value of config.precision on this machine, the hash of the data in data.root, and the heads in
        # model.start, once they are known.
        self.precision: str | None = None
        self.data_hash: str | None = None
        self.preprocessing: bytes | None = None  # content of preprocessing.json, once it is known
        self.heads: Heads | None = None
        self._data_files = files_of(config.data)  # before the data is read, so that a later change is noticed
        self.path = run_folder_path(config)
        self._configuration = self.path / "config.yaml"
        self.checkpoints = self.path / "checkpoints"
        self.weights = self.path / "weights.safetensors"
        self.heads_picture = self.path / "heads.png"
        # The operating system releases the lock when its owner dies. Those who only check it (attnconv.runs.status)
        # hold it for a moment, so this process tries for a second.
        self._lock = FileLock(self.path / ".lock", timeout=1)

    def check(self) -> None:
        """Raise RunFolderError if the run must not or cannot use its folder, without writing anything.

        Raises:
            RunFolderError: the run is finished or damaged, the folder holds another configuration, or it is not
                writable. If a finished run's data or heads must be read first, this is checked only afterwards.
        """
        # A link may lead nowhere, so links count as existing.
        existing = next(parent for parent in (self.path, *self.path.absolute().parents) if os.path.lexists(parent))
        if not existing.is_dir() or not os.access(existing, os.R_OK | os.W_OK | os.X_OK):
            raise RunFolderError(
                f"{existing} is not a writable folder, so {self.path} cannot be created; set output=FOLDER"
            )
        if not self._configuration.exists():
            if not nothing_to_keep(self.path):
                raise Damaged(self.path, "no config.yaml")
            return  # a new run: there is nothing to compare
        result = read_result(self.path)
        done = result is not None and result["status"] == "done"
        # A finished run computes nothing any more: precision=auto accepts it, whatever its precision.
        different = self._differences(None if done else self.precision)
        if different and not (nothing_to_keep(self.path) if self._lock.is_locked else gives_way(self.path)):
            raise RunFolderError(refusal(self.path, different, self.config, done))
        if done and self._knows_inputs():
            _, result, _ = read_finished(self.path)
            raise AlreadyDone(
                f"{self.path} is already finished (test accuracy {result['test_acc']:.4f}); "
                "choose another name= or seed=, or delete the folder"
            )
        if (self.checkpoints / "last.pt").exists():
            raise RunFolderError(
                f"{self.path} holds a run of an older version, which cannot resume; choose another name=, or delete it"
            )

    def _differences(self, precision: str | None) -> dict[str, str]:
        return differences(self.path, self.config, precision, self.data_hash, self.heads)

    def _knows_inputs(self) -> bool:
        """Return whether data and heads have been read, or need not be read to compare them with the run's."""
        if self.heads is None and start_weights(flatten(self.config.model, "model.")):
            return False
        recorded = read_recorded(self.path)
        return self.data_hash is not None or recorded is None or recorded.knows(self.config.data)

    def open(self) -> None:
        """Create the folder, lock it for this process, and write config.yaml.

        Raises:
            InUse: another process is using the folder.
            RunFolderError: the folder cannot be written; see also `check`.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            self.check()  # another process may have started or finished the run since the last check
            if self._configuration.exists():
                self._clear_failure()
            forget_unfinished(self.path)
            forget_unfinished(self.checkpoints)
            (self.path / ".owner").write_text(f"process {os.getpid()} on {socket.gethostname()}\n", "utf-8")
            frozen = replace(self.config, precision=self.precision or self.config.precision)
            if self.data_hash is not None:
                write_whole(self.path / DATA_FILE, describe_data(self.config.data, self.data_hash, self._data_files))
            if self.preprocessing is not None:
                write_whole(self.path / PREPROCESSING_FILE, self.preprocessing)
            write_whole(self._configuration, OmegaConf.to_yaml(to_plain(frozen)).encode())
            (self.path / "result.json").unlink(missing_ok=True)  # left by an earlier process
        except Timeout as error:
            try:
                who = (self.path / ".owner").read_text("utf-8").strip()
            except FileNotFoundError:
                who = "another process"
            raise InUse(f"{who} is using {self.path}; wait for it, or choose another name=") from error
        except OSError as error:
            raise RunFolderError(f"{self.path} cannot be written: {error.strerror}; set output=FOLDER") from error

    def _clear_failure(self) -> None:
        """Delete a failed run of another configuration that has nothing to resume from."""
        different = self._differences(self.precision)
        if not different:
            return
        print(
            f"{self.path}: starting over; the run there ended before its first checkpoint ({listed(different)})",
            flush=True,
        )
        shutil.rmtree(self.checkpoints)
        # Files of others stay.
        for file in (*LINES, *PRODUCTS, "starts.jsonl", ".wandb-id", DATA_FILE, PREPROCESSING_FILE, *OF_FAILURE):
            (self.path / file).unlink(missing_ok=True)
        self.checkpoints.mkdir()

    def close(self) -> None:
        """Release the folder for other processes."""
        if self._lock.is_locked:
            if (self.path / ".owner").is_file():
                (self.path / ".owner").unlink()
            self._lock.release()

    def append(self, file: str, record: dict[str, Any] | None) -> None:
        """Append a record as one line to a .jsonl file and flush it to the disk; do nothing for None."""
        if record is None:
            return
        with (self.path / file).open("a", encoding="utf-8") as lines:
            lines.write(_line(record))
            lines.flush()
            os.fsync(lines.fileno())

    def forget_all(self) -> None:
        """Delete what an earlier run left that ended before its first checkpoint."""
        for file in (*LINES, *PRODUCTS):
            (self.path / file).unlink(missing_ok=True)

    def forget_after(self, epochs_done: int, heads: bool, labels: "np.ndarray") -> None:
        """Drop incomplete lines, and the lines of epochs that will be trained again.

        Args:
            heads: whether the network has heads to record.
            labels: of the test images.

        Raises:
            Damaged: lines of other epochs are missing, or the predictions of a run that has been trained are missing or
                those of another run.
        """
        for file in LINES:
            if (self.path / file).exists():
                lines = read_lines(self.path, file)
                require_numbers(self.path, file, lines, NUMBERS.get(file, ()))
                text = "".join(_line(record) for record in lines if record["epoch"] <= epochs_done)
                write_whole(self.path / file, text.encode())
        for file in ("metrics.jsonl", "timing.jsonl"):
            read_epochs(self.path, file, epochs_done)
        if heads:
            read_epochs(self.path, "heads.jsonl", epochs_done, first=0)
        if epochs_done == self.config.epochs:
            last = read_lines(self.path, "metrics.jsonl")[-1:]
            require_numbers(self.path, "metrics.jsonl", last, ("test/acc",))
            require_right_answers(self.path, labels, last[0]["test/acc"])

    def note_start(self, start: dict[str, Any], resumed: bool) -> list[dict[str, Any]]:
        """Record a start of the run in starts.jsonl, and return all starts since its first step.

        Args:
            start: commit, hardware and versions.
            resumed: whether it continues from a checkpoint; else earlier starts have left nothing.
        """
        path = self.path / "starts.jsonl"
        known = read_lines(self.path, path.name, ("commit", "dirty")) if resumed else []
        if resumed and not known:  # of an older version, or lost
            known = [dict.fromkeys(start)]
        starts = [*known, start]
        write_whole(path, "".join(map(_line, starts)).encode())
        return starts

    def write_array(self, file: str, array: "np.ndarray") -> None:
        """Write a .npy file, completely or not at all."""
        import numpy as np  # not needed for reading run folders

        content = io.BytesIO()
        np.save(content, array, allow_pickle=False)
        write_whole(self.path / file, content.getvalue())

    def write_picture(self, file: str, figure: "Figure") -> None:
        """Write a figure as a .png file, completely or not at all."""
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=110)
        write_whole(self.path / file, content.getvalue())

    def write_result(self, result: dict[str, Any]) -> None:
        """Write result.json, completely or not at all."""
        write_whole(self.path / "result.json", (json.dumps(result, indent=2) + "\n").encode())


def nothing_to_keep(folder: Path) -> bool:
    """Return whether the run in the folder failed, stopped or was killed before its first checkpoint."""
    result = read_result(folder)
    done = result is not None and result["status"] == "done"
    return not (done or any((folder / "checkpoints").glob("*.pt")) or (folder / "weights.safetensors").exists())


def gives_way(folder: Path) -> bool:
    """Return whether a run of another configuration may replace the one in the folder."""
    return nothing_to_keep(folder) and running_process(folder) is None


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"
