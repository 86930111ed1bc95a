"""Trials of W&B sweeps: each file of configs/wandb/, expanded as the agent does, composes to a run."""

import pytest

from attnconv.config import CONFIGS, flatten, to_plain
from attnconv.files import read_yaml
from attnconv.runs.adapter import flat_config
from attnconv.runs.folder import run_folder_path
from attnconv.settings.arguments import train_arguments
from attnconv.settings.trial import trial_arguments
from conftest import compose

pytestmark = pytest.mark.slow

FILES = sorted(CONFIGS.glob("wandb/*.yaml"))


@pytest.fixture(autouse=True)
def utils(monkeypatch):
    """The functions of W&B's agent, in the environment of a trial."""
    functions = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setenv("WANDB_RUN_ID", "trial")
    return functions


def command_line(utils, file, parameters):
    """Return the arguments of train.py with which wandb.wandb_agent.Agent starts a trial."""
    command = utils.create_sweep_command(read_yaml(file)["command"])
    args = {key: {"value": value} for key, value in parameters.items()}
    values = utils.create_sweep_command_args({"args": args}) | {"env": [], "interpreter": [], "program": []}
    expanded = []
    for part in command:
        expanded += values[part[2:-1]] if part.startswith("${") and part.endswith("}") else [part]
    return expanded


def trials(file):
    """Return some possible trials: first values only, with the last value of one parameter, and last values only."""
    parameters = read_yaml(file)["parameters"]
    ends = {key: p.get("values") or [p["min"], p["max"]] for key, p in parameters.items()}
    first, last = ({key: values[place] for key, values in ends.items()} for place in (0, -1))
    return [first, *(first | {key: last[key]} for key in ends), last]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_trial_composes_to_a_run_with_its_own_folder(utils, file):
    assert read_yaml(file)["program"] == "train.py"
    folders = set()
    for parameters in trials(file):
        arguments = train_arguments(command_line(utils, file, parameters))
        assert not [argument for argument in arguments if argument.startswith(("logger.project", "logger.entity"))]
        composed = compose(arguments)
        assert composed.logger.name == "wandb"
        settings = flatten(to_plain(composed)) | {"model": composed.model["name"]}
        assert {key: settings[key] for key in parameters} == parameters
        folders.add(run_folder_path(composed))
    assert len(folders) == len(trials(file))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_trial_restarted_with_its_whole_configuration_is_the_same_run(utils, file):
    parameters = trials(file)[-1]
    first = compose(train_arguments(command_line(utils, file, parameters)))
    again = compose(train_arguments(command_line(utils, file, flat_config(first) | parameters)))
    assert again == first


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=timm", "model.timm_name=resnet18", "recipe=modern"],
        ["recipe=paper", "model=resnet18", "recipe.milestones=[2, 3]", "epochs=3", "data.mean=[0.5, 0.5, 0.5]"],
        ["model=sa_quadratic", "output=/a place/with,commas=and\"quotes'", "logger.tags=['a b', 'c,d']", "match=None"],
        ["scale.width=16", "name=run_${scale.width}", "logger.notes=a, b = c"],
    ],
)
def test_values_round_trip_through_the_flat_configuration(overrides):
    first = compose(trial_arguments(overrides))
    chosen = [override for override in overrides if (CONFIGS / override.partition("=")[0]).is_dir()]
    again = compose(trial_arguments([*chosen, *(f"{key}={value}" for key, value in flat_config(first).items())]))
    assert again == first


@pytest.mark.parametrize(
    ("overrides", "wrong"),
    [
        (["model=sa_quadratc"], "sa_quadratc"),
        (["experiment=quikstart"], "quikstart"),
        (["model=sa_learned", "scale=mni"], "mni"),
        (["model=conv3x3", "model=vitt"], "vitt"),
    ],
)
def test_a_file_that_does_not_exist_is_an_error_and_not_the_default(command, overrides, wrong):
    finished = command("train.py", *overrides, "logger=none")
    assert (finished.returncode, finished.stdout) == (2, "")
    assert wrong in finished.stderr
    assert "did you mean" in finished.stderr


def test_a_label_that_repeats_no_setting_is_refused(command):
    finished = command("train.py", "fraction=0.1", "scale=mini", "logger=none")
    assert (finished.returncode, finished.stdout) == (2, "")
    assert "unknown setting 'fraction'; did you mean 'data.fraction'?" in finished.stderr


def test_a_trial_can_use_files_of_its_own_folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/mine.yaml").write_text("name: mine\n_target_: torch.nn.Identity\nwidth: 8\n")
    arguments = ["--config-dir", str(tmp_path), "model=mine", "scale=mini"]
    assert train_arguments(arguments) == ["scale=mini", "model=mine", "name=trial_trial", *arguments[:2]]
    again = train_arguments([*arguments, "model.name=mine", "model.width=16", "recipe=modern", "recipe.name=modern"])
    assert "model.width=16" in again
    assert "model.name=mine" not in again


def test_an_unnamed_trial_is_named_after_its_run_id(monkeypatch):
    assert compose(train_arguments(["seed=1"])).name == "trial_trial"
    monkeypatch.delenv("WANDB_SWEEP_ID")
    assert train_arguments(["seed=1"]) == ["seed=1"]
