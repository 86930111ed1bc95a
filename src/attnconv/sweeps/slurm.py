"""Run the jobs of a sweep on a cluster, through Hydra's submitit launcher, and wait for all of them."""

import time
from pathlib import Path
from typing import Any

from attnconv.errors import ConfigError, UserError

POLL_SECONDS = 20  # between queries of the cluster's accounting, one query for all jobs
CONFIRM_SECONDS = 15


class EndedByCluster(UserError):
    """A job that ended without a result: canceled, out of memory, or on a failed node."""


def launch_on_cluster(launcher: Any, overrides: list[list[str]], folder: Path) -> list[Any]:
    """Submit a job per list of overrides and wait for all of them.

    Args:
        launcher: hydra-submitit-launcher, set up.
        folder: where submitit keeps the jobs of this launch only.

    Returns:
        For each job, Hydra's JobReturn, or the error if it has none.

    Raises:
        ConfigError: the cluster rejects the job (for example, an unknown partition), or there is no cluster.
    """
    from submitit import SlurmJob
    from submitit.core.utils import UncompletedJobError
    from submitit.slurm.slurm import SlurmInfoWatcher

    # By default submitit polls less and less often, up to every ten minutes, and would notice a canceled job that late.
    SlurmJob.watcher = SlurmInfoWatcher(delay_s=POLL_SECONDS)
    try:
        return list(launcher.launch(overrides, initial_job_idx=0))
    except UncompletedJobError as error:
        # The launcher stops at the first job that the cluster ended, while others may still be running.
        ids = sorted((path.parent.name for path in folder.glob("*/*_submitted.pkl")), key=_array_index)
        if not ids:
            raise ConfigError(_refusal(error)) from error
        return [_result(SlurmJob(folder / "%j", job_id)) for job_id in ids]
    except RuntimeError as error:  # no srun on this machine
        if any(folder.glob("*/*_submitted.pkl")):
            raise
        raise ConfigError(f"the sweep cannot be submitted: {error}") from error


def _result(job: Any) -> Any:
    from submitit.core.utils import UncompletedJobError

    while True:
        try:
            return job.results()[0]
        except UncompletedJobError:
            # While a job is being requeued, accounting may report it as failed.
            time.sleep(CONFIRM_SECONDS)
            job.watcher.clear()
            if job.done(force_check=True):
                return EndedByCluster(f"job {job.job_id} ended as {job.state}; its log: {job.paths.stderr}")


def _array_index(job_id: str) -> int:
    return int(job_id.partition("_")[2] or 0)


def _refusal(error: Exception) -> str:
    """Return why sbatch did not submit the sweep."""

    def said(kind: str) -> list[str]:
        return [line.partition(kind)[2].strip() for line in str(error).splitlines() if kind in line]

    # Without a cluster, errors of its search come first, and the last line says that it has failed.
    if fatal := said("fatal:"):
        return f"sbatch finds no cluster from this machine: {fatal[-1]}"
    return f"the cluster rejects the sweep: {(said('error:') or [str(error)])[0]}"
