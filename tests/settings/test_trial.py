"""Trials of W&B sweeps: each file of configs/wandb/, expanded as by the agent, composes to a run."""

import itertools

import pytest

from attnconv import config
from attnconv.config import CONFIGS, flatten, to_plain
from attnconv.files import read_yaml
from attnconv.runs.folder import run_folder_path
from attnconv.runs.labels import flat_config
from attnconv.settings.arguments import train_arguments
from attnconv.settings.trial import trial_arguments

pytestmark = pytest.mark.slow

utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
FILES = sorted(CONFIGS.glob("wandb/*.yaml"))


@pytest.fixture(autouse=True)
def agent(monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setenv("WANDB_RUN_ID", "trial")


def command_line(file, parameters):
    """Return the arguments with which wandb.wandb_agent.Agent starts train.py for a trial."""
    command = utils.create_sweep_command(read_yaml(file)["command"])
    args = {key: {"value": value} for key, value in parameters.items()}
    values = utils.create_sweep_command_args({"args": args}) | {"env": [], "interpreter": [], "program": []}
    expanded = []
    for part in command:
        expanded += values[part[2:-1]] if part.startswith("${") and part.endswith("}") else [part]
    return expanded


def trials(file):
    """Return some trials that W&B may choose: the first and the last value of each parameter."""
    parameters = read_yaml(file)["parameters"]
    ends = [[p["values"][0], p["values"][-1]] if "values" in p else [p["min"], p["max"]] for p in parameters.values()]
    return [dict(zip(parameters, values, strict=True)) for values in itertools.product(*ends)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_trial_is_a_run_in_a_folder_of_its_own(file):
    assert read_yaml(file)["program"] == "train.py"
    folders = set()
    for parameters in trials(file):
        arguments = train_arguments(command_line(file, parameters))
        assert not [argument for argument in arguments if argument.startswith(("logger.project", "logger.entity"))]
        composed = config.compose(arguments)
        assert composed.logger.name == "wandb"
        settings = flatten(to_plain(composed)) | {"model": composed.model["name"]}
        assert {key: settings[key] for key in parameters} == parameters
        folders.add(run_folder_path(composed))
    assert len(folders) == len(trials(file))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_trial_that_comes_back_with_its_whole_configuration_is_the_same_run(file):
    parameters = trials(file)[-1]
    first = config.compose(train_arguments(command_line(file, parameters)))
    again = config.compose(train_arguments(command_line(file, flat_config(first) | parameters)))
    assert again == first


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=timm", "model.timm_name=resnet18", "recipe=modern"],
        ["recipe=paper", "model=resnet18", "recipe.milestones=[1, 2]", "epochs=3", "data.mean=[0.5, 0.5, 0.5]"],
        ["model=sa_quadratic", "output=/a place/with,commas=and\"quotes'", "logger.tags=['a b', 'c,d']", "match=None"],
        ["scale.width=16", "name=run_${scale.width}", "logger.notes=a, b = c"],
    ],
)
def test_values_come_back_as_they_were(overrides):
    first = config.compose(trial_arguments(overrides))
    chosen = [override for override in overrides if (CONFIGS / override.partition("=")[0]).is_dir()]
    again = config.compose(trial_arguments([*chosen, *(f"{key}={value}" for key, value in flat_config(first).items())]))
    assert again == first


def test_a_trial_without_a_name_has_one_of_its_own(monkeypatch):
    assert config.compose(train_arguments(["seed=1"])).name == "trial_trial"
    monkeypatch.delenv("WANDB_SWEEP_ID")
    assert train_arguments(["seed=1"]) == ["seed=1"]
