"""One run, from a frozen configuration to a finished run folder, resumed as often as it takes.

A process goes on where the last checkpoint stands. Whatever ends it, the next one continues to the same bytes.
"""

import sys
import traceback
from typing import Any

from attnconv.config import Config
from attnconv.errors import AlreadyDone, AtWork, CellFailed, UserError
from attnconv.runs.folder import run_folder_path
from attnconv.runs.records import read_result
from attnconv.training.device import pool
from attnconv.training.failures import reason_of
from attnconv.training.interrupts import Interrupts
from attnconv.training.setup import prepare
from attnconv.training.trainer import Trainer


def run(config: Config) -> dict[str, Any]:
    """Train what `config` describes into its run folder, resuming an unfinished run.

    Returns:
        The content of result.json.

    Raises:
        UserError: see `prepare`; Diverged, OutOfMemory and RunFolderError (a full disk) after result.json says so.
        Stopped: a signal asked for it, and there is a checkpoint; result.json says so.
    """
    setup = prepare(config)
    with setup.claimed(), Interrupts(several=setup.processes.count > 1, parent=pool()) as interrupts:
        trainer = Trainer(setup, interrupts)
        with trainer.recorded():
            trainer.fit()
        interrupts.end_sweep()
    return trainer.result


def run_in_sweep(config: Config) -> None:
    """Train one cell of a sweep; skip it if it is done or running elsewhere, and print why if it fails.

    Raises:
        CellFailed: it failed; the reason has been printed.
        Stopped: see `run`.
    """
    failure = None
    try:
        run(config)
    except (AlreadyDone, AtWork) as elsewhere:  # another process took it since the sweep began
        print(f"skipped: {elsewhere}".partition(";")[0], flush=True)
    except UserError as error:
        failure = str(error)
        print(f"error: {failure}", file=sys.stderr, flush=True)
    except Exception as error:
        failure = reason_of(error)
        traceback.print_exc()
    if failure is not None:
        # Not the error itself: its traceback would hold model and data in memory while the other cells run.
        raise CellFailed(failure)


def run_trial(config: Config) -> float:
    """Train one trial of a sweeper that optimizes, unless it is finished; return its validation accuracy.

    Raises:
        UserError, Stopped: see `run`.
    """
    try:
        result = run(config)
    except AlreadyDone:
        finished = read_result(run_folder_path(config))
        assert finished is not None
        result = finished
    accuracy: float = result["val_acc"]
    return accuracy
