"""Dashboards: they show the run folder and are never read.

A dashboard that is missing or fails causes a warning and never stops a run. All calls go through `Dashboard`, which
reports the first error and stays silent afterwards.

A run may be started many times, and may be killed between writing to the run folder and to the dashboard. Each start
therefore logs all recorded epochs again, with the epoch as the dashboard's step, and the dashboard keeps one of each.
"""

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnconv.config import Config
from attnconv.data.dataset import DataSet, class_names
from attnconv.files import in_one_line
from attnconv.runs.adapter import Adapter, History
from attnconv.runs.trackio_run import TrackioRun
from attnconv.runs.wandb_run import WandbRun, disabled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ADAPTERS = {"wandb": WandbRun, "trackio": TrackioRun}


class Dashboard:
    """One dashboard, or none, that cannot stop a run.

    Args:
        shown: False for all but one of several processes.
    """

    def __init__(self, config: Config, folder: Path, history: History, shown: bool = True):
        self._config, self._name = config, config.logger.name
        self._adapter: Adapter | None = None
        if not shown or self._name not in ADAPTERS:
            return
        if self._name == "wandb" and disabled():
            print("W&B: disabled", flush=True)
            return
        self._guard(lambda: setattr(self, "_adapter", ADAPTERS[self._name](config, folder, history)))

    @property
    def shown(self) -> bool:
        """Return whether there is one, and it has not failed."""
        return self._adapter is not None

    def log(self, epoch: int, metrics: dict[str, float]) -> None:
        """Log the numbers of one epoch."""
        if self._adapter is not None:
            self._guard(self._adapter.log, epoch, metrics)

    def picture(self, epoch: int, figure: "Figure | None") -> None:
        """Log a figure of the heads after one epoch, if there is one."""
        if self._adapter is not None and figure is not None:
            self._guard(self._adapter.picture, epoch, figure)

    def conclude(self, result: dict[str, Any], data: DataSet) -> None:
        """Log the content of the future result.json, once predictions and weights are in the run folder."""
        if self._adapter is not None:
            names = class_names(self._config.data, data.classes)
            self._guard(self._adapter.conclude, result, data.test.labels.cpu().numpy(), names)

    def finish(self, status: str) -> None:
        """Close the dashboard's run, so that the next run of a sweep does not write into it."""
        if self._adapter is not None:
            self._guard(self._adapter.finish, status)
            self._adapter = None

    def _guard(self, call: Any, *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception as error:  # whatever the library raises
            adapter, self._adapter = self._adapter, None
            if adapter is not None and call != adapter.finish:
                with suppress(Exception):  # the first error is the one to report
                    adapter.finish("failed")
            reason = in_one_line(error)
            if isinstance(error, ModuleNotFoundError) and error.name == self._name:
                reason = f"it is not installed: pip install {self._name}"
            rest = "everything is in the run folder"
            print(f"warning: {self._name} is off for this run ({reason}); {rest}", file=sys.stderr)
