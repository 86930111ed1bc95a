"""One run, from a frozen configuration to a finished run folder.

A process resumes from the last checkpoint. However it ends, the next process continues to the same bytes.
"""

import sys
import traceback
from typing import Any

from attnconv.config import Config, checked
from attnconv.errors import AlreadyDone, CellFailed, InUse, Stopped, UserError, reason_of
from attnconv.models.process_state import default_settings
from attnconv.runs.folder import run_folder_path
from attnconv.runs.records import read_result
from attnconv.training.device import pool_parent
from attnconv.training.interrupts import Interrupts
from attnconv.training.setup import prepare
from attnconv.training.trainer import Trainer


def run(config: Config) -> dict[str, Any]:
    """Check a configuration, which Python code may have edited, and train it: see `run_checked`."""
    return run_checked(checked(config))


@default_settings()
def run_checked(config: Config) -> dict[str, Any]:
    """Train a configuration in its run folder, resuming an unfinished run, and return the content of result.json.

    Raises:
        UserError: see `prepare`; also Diverged, OutOfMemory and RunFolderError (a full disk), which result.json
            records.
        Stopped: a signal stopped the run; a checkpoint exists, and result.json says so.
    """
    setup = prepare(config)
    with setup.claimed(), Interrupts(several=setup.processes.count > 1, parent=pool_parent()) as interrupts:
        trainer = Trainer(setup, interrupts)
        with trainer.recorded():
            trainer.fit()
        interrupts.end_sweep()
    return trainer.result


# In a process of a pool: whether a signal stopped its last run, and with it those that the pool would start next.
_stopped = False


def run_in_sweep(config: Config) -> None:
    """Train one run of a sweep. Skip it if it is done or running elsewhere, and print the reason if it fails.

    Raises:
        CellFailed: the run failed; the reason has been printed.
        Stopped: see `run_checked`.
    """
    global _stopped
    if _stopped:
        raise CellFailed("stopped by a signal")
    failure = None
    try:
        run_checked(config)
    except (AlreadyDone, InUse) as elsewhere:  # another process took the run after the sweep began
        print(f"skipped: {elsewhere}".partition(";")[0], flush=True)
    except UserError as error:
        failure = str(error)
        print(f"error: {failure}", file=sys.stderr, flush=True)
    except (Stopped, KeyboardInterrupt):
        if pool_parent() is None:
            raise
        # An error would let joblib kill the other processes of its pool, which are still saving their runs.
        _stopped, failure = True, "stopped by a signal"
    except Exception as error:
        failure = reason_of(error)
        traceback.print_exc()
    if failure is not None:
        # Do not chain the error: its traceback would keep the model and the data in memory during the other runs.
        raise CellFailed(failure)


def run_trial(config: Config) -> float:
    """Train one trial of an optimizing sweeper, unless it is finished, and return its validation accuracy.

    Raises:
        UserError, Stopped: see `run_checked`.
    """
    try:
        result = run_checked(config)
    except AlreadyDone:
        result = read_result(run_folder_path(config)) or {}
    accuracy: float = result["val_acc"]
    return accuracy
