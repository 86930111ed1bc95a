"""Hydra's grid sweeper, which passes its runs through attnconv.sweeps.grid. Hydra looks for plugins in this package."""

import os
import signal
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from attnconv.config import POOL, freeze
from attnconv.errors import Stopped, UserError, reason_of
from attnconv.files import in_one_line
from attnconv.settings.contradictions import require_effect
from attnconv.settings.overrides import check_overrides, keep_text
from attnconv.training.interrupts import handle

JOBLIB = "JoblibLauncher"
REQUEUES = 100  # times that Slurm requeues a run that reached its time limit


@dataclass
class CellSweeperConf:
    _target_: str = "hydra_plugins.attnconv_sweeper.CellSweeper"
    params: dict[str, str] = field(default_factory=dict)


ConfigStore.instance().store(group="hydra/sweeper", name="cells", node=CellSweeperConf, provider="attnconv")


class CellSweeper(BasicSweeper):
    """Make one cell, which is one run, of each combination of the swept values, and skip cells that are done."""

    def __init__(self, params: dict[str, str]):
        super().__init__(max_batch_size=None, params=params)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        launcher = config.hydra.launcher
        # By default submitit never requeues a run. Our runs resume, so they should be requeued.
        asked_for = any("max_num_timeout" in override for override in config.hydra.overrides.hydra)
        if launcher.get("max_num_timeout") == 0 and not asked_for:
            launcher.max_num_timeout = REQUEUES
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        assert self.hydra_context is not None
        assert self.config is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        swept = [*map(keep_text, self._parse_config()), *arguments]
        check_overrides(swept)
        (grid,) = self.split_arguments(parser.parse_overrides(swept), None)
        cells = []  # configurations and their overrides
        for overrides in grid:
            composed = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
            with open_dict(composed):
                del composed["hydra"]
            cells.append((freeze(composed), overrides))
        require_effect(cells)
        from attnconv.sweeps.grid import Cell, run_cells  # imports torch: only once all is known to be good

        found = [Cell(overrides, config) for config, overrides in cells]
        here = self._launcher_name in ("BasicLauncher", JOBLIB)
        run_cells(found, self._launch, record=Path(self.config.hydra.sweep.dir), here=here)

    @property
    def _launcher_name(self) -> str:
        assert self.config is not None
        return str(self.config.hydra.launcher.get("_target_")).rpartition(".")[2]

    def _launch(self, overrides: list[list[str]]) -> list[str | None]:
        assert self.launcher is not None
        assert self.config is not None
        os.environ[POOL] = str(os.getpid())
        if self._launcher_name != "SlurmLauncher":
            try:
                with _CtrlC() if self._launcher_name == JOBLIB else nullcontext():
                    jobs = self.launcher.launch(overrides, initial_job_idx=0)
            # Of the launcher's settings: errors of runs are in their JobReturn.
            except (TypeError, ValueError) as error:
                raise UserError(f"hydra.launcher: {in_one_line(error)}") from error
            return [_reason(job) for job in jobs]
        from attnconv.sweeps.slurm import launch_on_cluster

        folder = Path(self.config.hydra.launcher.submitit_folder).parent
        return [_reason(job) for job in launch_on_cluster(self.launcher, overrides, folder)]


class _CtrlC:
    """While entered, let the first Ctrl-C wait: the processes of a pool get it, too, save their runs, and end.

    Joblib would kill them at once. The second Ctrl-C is not held back.

    Raises:
        Stopped: on leaving, if there was one.
    """

    def __enter__(self) -> None:
        self._received = False
        self._before = handle([signal.SIGINT], self._receive)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self._received = True
        self._restore()

    def __exit__(self, *_: object) -> None:
        self._restore()
        if self._received:
            raise Stopped(signal.SIGINT)

    def _restore(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)


def _reason(job: JobReturn | Exception) -> str | None:
    """Return why a job failed, or None if it did not."""
    if isinstance(job, JobReturn):
        if job.status is JobStatus.COMPLETED:
            return None
        job = job._return_value
    return str(job) if isinstance(job, UserError) else reason_of(job)
