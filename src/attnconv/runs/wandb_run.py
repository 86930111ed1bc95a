"""A run in Weights & Biases. Settings override W&B's environment variables, and these override the defaults."""

import glob
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attnconv.analysis.evaluation import class_accuracies, confusion_matrix
from attnconv.config import Config, flatten
from attnconv.files import write_whole
from attnconv.runs.adapter import History, display_name, flat_config, group, pixels
from attnconv.settings.arguments import under_agent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST_GROUP = 128  # characters of W&B's groups and artifacts
LONGEST_TAG = 64
MOST_CLASSES = 100  # of a confusion matrix: W&B keeps 10,000 cells
INIT_SECONDS = 30.0


class WandbRun:
    """A W&B run for all starts of a run; the run folder keeps its id. It is online when logged in.

    Online, W&B drops steps that it already has. Offline nothing does: the files of this start replace those of earlier
    starts. They hold the metrics of all epochs, and the pictures since this start.
    """

    def __init__(self, config: Config, folder: Path, history: History):
        for name in [name for name in os.environ if name.startswith("WANDB_") and not os.environ[name]]:
            del os.environ[name]  # W&B refuses an empty value
        import wandb

        self._wandb, self._config, self._folder = wandb, config, folder
        name = _identity(folder)
        if not {"WANDB_RUN_ID", "WANDB_DIR"} <= os.environ.keys():  # with both, they may be those of another run
            for earlier in _files(folder).glob(f"offline-run-????????_??????-{glob.escape(name)}"):
                shutil.rmtree(earlier)
        self._run = self._start(None if under_agent() else name)
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="epoch")
        # The summary has the times of result.json, averaged over all epochs.
        self._run.define_metric("images_per_second", step_metric="epoch", summary="none")
        seen = self._run.step  # of earlier starts, online; 0 for a new run
        for epoch, metrics in history:
            if epoch >= seen:
                self.log(epoch, metrics)

    def _start(self, name: str | None) -> Any:
        """Start online if possible, else offline, and print which in one line."""
        mode, reason = _mode(self._wandb)
        if mode != "offline":
            try:
                run = self._init(name, mode)
                print(f"W&B: {run.url or mode}", flush=True)
                return run
            except self._wandb.errors.Error as error:
                reason = _first_line(error)
        run = self._init(name, "offline")
        because = f" ({reason})" if reason else ""
        print(f"W&B: offline{because} in {Path(run.dir).parent}; `wandb sync` uploads it", flush=True)
        return run

    def _init(self, name: str | None, mode: Any) -> Any:
        config, chosen = self._config, self._config.logger
        project = None if under_agent() else _choose(chosen.project, "WANDB_PROJECT", "attnconv")
        job_type = "tune" if config.data.holdout else "train"
        tags = [tag[:LONGEST_TAG] for tag in (config.recipe.name, config.scale.name, config.name)]
        return self._wandb.init(
            project=project,
            entity=None if under_agent() else chosen.entity,
            id=name,
            resume="allow",
            name=_choose(None, "WANDB_NAME", display_name(config)),
            group=_choose(chosen.group, "WANDB_RUN_GROUP", group(config)[-LONGEST_GROUP:]),
            job_type=_choose(chosen.job_type, "WANDB_JOB_TYPE", job_type),
            tags=_choose(chosen.tags, "WANDB_TAGS", tags),
            notes=chosen.notes,
            config=flat_config(config),
            dir=_choose(None, "WANDB_DIR", str(self._folder)),
            mode=mode,
            reinit="finish_previous",  # the runs of a sweep share a process, one after the other
            settings=self._wandb.Settings(silent=True, init_timeout=INIT_SECONDS),
        )

    def log(self, epoch: int, metrics: dict[str, float]) -> None:
        # The step is the epoch, not W&B's number of calls, so that no epoch counts twice.
        self._run.log({"epoch": epoch, **metrics}, step=epoch)

    def picture(self, epoch: int, figure: "Figure") -> None:
        self._run.log({"heads": self._wandb.Image(pixels(figure))}, step=epoch)

    def conclude(self, result: dict[str, Any], truth: np.ndarray, names: tuple[str, ...]) -> None:
        """Log result.json as the summary, class accuracies, the confusion matrix, and the weights if asked."""
        predictions = np.load(self._folder / "predictions.npy")
        accuracies = class_accuracies(confusion_matrix(truth, predictions, len(names)), names)
        table = self._wandb.Table(columns=["class", "accuracy"], data=[list(row) for row in accuracies.items()])
        bars = self._wandb.plot.bar(table, "class", "accuracy", title="Accuracy by class, test")
        charts = {"class_accuracy": bars}
        if len(names) <= MOST_CLASSES:
            charts["confusion_matrix"] = self._wandb.plot.confusion_matrix(
                y_true=truth.tolist(),
                preds=predictions.tolist(),
                class_names=list(names),
                title="Confusion, test",
            )
        self._run.log(charts, step=self._config.epochs)
        summary = {key: value for key, value in flatten(result).items() if value is not None}
        self._run.summary.update(summary | {f"class_accuracy.{name}": value for name, value in accuracies.items()})
        if self._config.logger.weights:
            title = re.sub(r"[^\w.-]+", "-", display_name(self._config))[-LONGEST_GROUP:]
            artifact = self._wandb.Artifact(title, type="model", metadata=summary)
            artifact.add_file(str(self._folder / "weights.safetensors"))
            self._run.log_artifact(artifact)

    def finish(self, status: str) -> None:
        """Close the run. The cluster restarts a preempted trial, so the sweep must restart it, too."""
        if status == "interrupted" and under_agent() and "SLURM_JOB_ID" in os.environ:
            self._run.mark_preempting()
        self._run.finish(exit_code=int(status != "done"))


def disabled() -> bool:
    """Return whether the environment turns W&B off; it then records nothing."""
    switched_off = os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on")
    return switched_off or os.environ.get("WANDB_MODE", "").lower() == "disabled"


def _identity(folder: Path) -> str:
    """Return the id of the run: from the environment, else the one in the run folder."""
    if "WANDB_RUN_ID" in os.environ:
        return os.environ["WANDB_RUN_ID"]
    path = folder / ".wandb-id"
    if not path.exists():
        write_whole(path, uuid.uuid4().hex[:8].encode())
    return path.read_text("utf-8")


def _files(folder: Path) -> Path:
    """Return the folder for W&B's files of runs."""
    return Path(os.environ.get("WANDB_DIR", folder)) / "wandb"


def _mode(wandb: Any) -> tuple[str, str]:
    """Return online or offline, and the reason for offline if there is one."""
    asked = os.environ.get("WANDB_MODE")
    if asked:
        return {"dryrun": "offline", "run": "online"}.get(asked, asked), ""  # W&B's older names
    try:
        return ("online", "") if wandb.login(prompt=False) else ("offline", "")
    except wandb.errors.Error as error:
        return "offline", _first_line(error)


def _choose(setting: Any, variable: str, default: Any) -> Any:
    """Return the setting if given, None if the environment variable is set (W&B reads it), else the default."""
    if setting:
        return setting
    return None if os.environ.get(variable) else default


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
