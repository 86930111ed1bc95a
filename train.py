"""Train one network into one run folder: `python train.py --help`."""

import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_original_cwd
from omegaconf import DictConfig

from attnconv.config import POOL, freeze, in_sweep, register_schema, valid_keys
from attnconv.data.root import check_root
from attnconv.errors import one_line_errors
from attnconv.runs.folder import RunFolder
from attnconv.settings.arguments import check_trial, register_help, sweeper_optimizes, train_arguments
from attnconv.settings.contradictions import refuse_of_sweeps, require_effect

register_schema()
register_help()


@hydra.main(version_base="1.3", config_path="configs", config_name="config")
def main(composed: DictConfig) -> float | None:
    """Train one run, or one run of a sweep; return the validation accuracy to an optimizing sweeper."""
    os.chdir(get_original_cwd())  # paths are relative to the folder of the command, whatever hydra.job.chdir says
    if not in_sweep():
        with one_line_errors(valid_keys()):  # here, because Hydra would print its own line first
            train(composed)
        return None
    config = freeze(composed)
    if sweeper_optimizes():
        with one_line_errors(valid_keys()):
            check_trial(config)
        from attnconv.run import run_trial

        return run_trial(config)
    from attnconv.run import run_in_sweep
    from attnconv.runs.estimate import progress_line

    line = progress_line(Path(HydraConfig.get().sweep.dir), Path(config.output))
    if line:
        print(line, flush=True)
    run_in_sweep(config)
    return None


def train(composed: DictConfig) -> None:
    """Train one run."""
    config = freeze(composed)
    if POOL not in os.environ:  # a study has checked this for all of its runs
        refuse_of_sweeps([*HydraConfig.get().overrides.task, *HydraConfig.get().overrides.hydra])
        require_effect([(config, HydraConfig.get().overrides.task)])
    RunFolder(config).check()
    check_root(config.data)
    from attnconv.run import run_checked  # imports torch, which takes seconds: check everything else first

    run_checked(config)


if __name__ == "__main__":
    with one_line_errors(valid_keys()):
        sys.argv[1:] = train_arguments(sys.argv[1:])
        try:
            main()
        except SystemExit as ended:  # with 1 where Hydra has printed an error: --cfg job --package NOTHING
            sys.exit(2 if ended.code == 1 else ended.code)
