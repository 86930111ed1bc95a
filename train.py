"""Train one network into one run folder: `python train.py --help`."""

import hydra
from omegaconf import DictConfig

from attnconv.config import freeze, in_sweep, register_schema, valid_keys
from attnconv.errors import one_line_errors

register_schema()


@hydra.main(version_base="1.3", config_path="configs", config_name="config")
def main(composed: DictConfig) -> None:
    config = freeze(composed)
    from attnconv.run import run, run_in_sweep  # imports torch: only once the configuration is known to be good

    run_in_sweep(config) if in_sweep() else run(config)


if __name__ == "__main__":
    with one_line_errors(valid_keys()):
        main()
