"""Jobs on a cluster, through Hydra's submitit launcher, to the end of every one of them."""

import time
from pathlib import Path
from typing import Any

from attnconv.errors import ConfigError, UserError

POLL_SECONDS = 20  # between questions to the cluster's accounting, one for all jobs
CONFIRM_SECONDS = 15


class EndedByCluster(UserError):
    """A job that ended without saying how: canceled, out of memory, or on a node that failed."""


def launch_on_cluster(launcher: Any, overrides: list[list[str]], folder: Path) -> list[Any]:
    """Submit a job per list of overrides and wait for all of them.

    Args:
        launcher: hydra-submitit-launcher's, set up.
        folder: where submitit keeps the jobs of this launch, and of no other.

    Returns:
        For each job Hydra's JobReturn, or the error for which there is none.

    Raises:
        ConfigError: the cluster takes no such job (a partition that does not exist), or there is none.
    """
    from submitit import SlurmJob
    from submitit.core.utils import UncompletedJobError
    from submitit.slurm.slurm import SlurmInfoWatcher

    # Left alone, it asks ever more seldom, at last every ten minutes: so late would it notice a canceled job.
    SlurmJob.watcher = SlurmInfoWatcher(delay_s=POLL_SECONDS)
    try:
        return list(launcher.launch(overrides, initial_job_idx=0))
    except UncompletedJobError as error:
        # The launcher leaves at the first job that the cluster ended, while others may still be at work.
        ids = sorted((path.parent.name for path in folder.glob("*/*_submitted.pkl")), key=_array_index)
        if not ids:
            raise ConfigError(f"the cluster refuses the sweep: {_reason(error)}") from error
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
            # Between two lives of a job that was put back into the queue, accounting may say that it failed.
            time.sleep(CONFIRM_SECONDS)
            job.watcher.clear()
            if job.done(force_check=True):
                return EndedByCluster(f"job {job.job_id} ended as {job.state}; its log: {job.paths.stderr}")


def _array_index(job_id: str) -> int:
    return int(job_id.partition("_")[2] or 0)


def _reason(error: Exception) -> str:
    """What sbatch complained of."""
    complaints = [line for line in str(error).splitlines() if "error:" in line]
    return complaints[0].partition("error:")[2].strip() if complaints else str(error)
