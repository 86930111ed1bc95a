"""The tests' cache of compositions changes nothing that a command reads."""

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import OmegaConf

import composed_once
from attnconv.config import CONFIGS, register_schema
from attnconv.settings.arguments import register_help

pytestmark = pytest.mark.slow  # each case composes several times


@pytest.fixture(autouse=True)
def resolvers():
    register_schema()
    register_help()


def composed(load, overrides, mode):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return load(GlobalHydra.instance().config_loader(), "config", overrides, mode)


@pytest.mark.parametrize(
    ("overrides", "mode"),
    [
        ([], RunMode.RUN),
        (["model=conv3x3", "scale.layers=2", "seed=1", "recipe.lr=1e-3"], RunMode.RUN),
        (["experiment=table1", "epochs=1"], RunMode.MULTIRUN),
        (["model=conv3x3,vit", "seed=1,2", "scale=mini"], RunMode.MULTIRUN),
        (["+model.extra=1", "logger=none", "hydra.verbose=true", "seed=2"], RunMode.RUN),
        (["name='a b'", "recipe=speedrun", "+model.extra={a: 1}"], RunMode.RUN),
    ],
)
def test_a_cached_composition_equals_hydras(monkeypatch, tmp_path, overrides, mode):
    monkeypatch.chdir(tmp_path)
    expected = composed(composed_once.HYDRAS_OWN, overrides, mode)
    for _ in range(2):
        found = composed(composed_once.load, overrides, mode)
        assert OmegaConf.to_container(found) == OmegaConf.to_container(expected)
        assert OmegaConf.is_struct(found)
        found.seed = -1  # the next one is another copy


@pytest.mark.parametrize(
    ("overrides", "mode"),
    [
        (["sed=1"], RunMode.RUN),
        (["model=nope"], RunMode.RUN),
        (["seed=1,2"], RunMode.RUN),
        (["models@other=vit"], RunMode.RUN),
        (["data@other=arrays"], RunMode.RUN),
        (["+data@other=arrays"], RunMode.RUN),
        (["+model.width=1"], RunMode.RUN),
    ],
)
def test_hydra_refuses_the_same_overrides(overrides, mode):
    with pytest.raises(ConfigCompositionException) as hydras:
        composed(composed_once.HYDRAS_OWN, overrides, mode)
    for _ in range(2):
        with pytest.raises(type(hydras.value)) as found:
            composed(composed_once.load, overrides, mode)
        assert str(found.value) == str(hydras.value)


def test_what_a_command_composed_is_not_taken_for_a_composition_elsewhere(command, monkeypatch):
    monkeypatch.setattr(composed_once, "_found", {})
    assert command("train.py", "--cfg", "job").returncode == 0
    found, expected = (composed(load, [], RunMode.RUN) for load in (composed_once.load, composed_once.HYDRAS_OWN))
    assert OmegaConf.to_container(found) == OmegaConf.to_container(expected)
