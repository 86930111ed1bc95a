"""`hydra/launcher=stacked`: the runs of a sweep that are alike, in one process and step by step together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from attnconv.config import freeze
from attnconv.errors import CellFailed, ConfigError


@dataclass
class StackedLauncherConf:
    _target_: str = "hydra_plugins.attnconv_stacked_launcher.StackedLauncher"
    runs: int = 8  # at most so many at once; memory grows with it


ConfigStore.instance().store(group="hydra/launcher", name="stacked", node=StackedLauncherConf, provider="attnconv")


class StackedLauncher(Launcher):
    """Trains runs that differ in their seeds alone as one, and the others after them.

    Args:
        runs: at most so many at once.
    """

    def __init__(self, runs: int):
        self._runs = runs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._context, self._config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from attnconv.stack import run_stacked  # imports torch

        if self._runs < 1:
            raise ConfigError(f"hydra.launcher.runs must be at least 1, not {self._runs}")
        configs = [self._compose(overrides) for overrides in job_overrides]
        return [_job(reason) for reason in run_stacked(configs, self._runs)]

    def _compose(self, overrides: Sequence[str]) -> Any:
        composed = self._context.config_loader.load_sweep_config(self._config, list(overrides))
        HydraConfig.instance().set_config(composed)  # as Hydra does before a job: it tells that this is a sweep
        with open_dict(composed):
            del composed["hydra"]
        return freeze(composed)


def _job(reason: str | None) -> JobReturn:
    if reason is None:
        return JobReturn(status=JobStatus.COMPLETED)
    job = JobReturn(status=JobStatus.FAILED)
    job.return_value = CellFailed(reason)
    return job
