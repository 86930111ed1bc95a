"""All settings of a run: their types, units, limits and meaning.

Hydra composes configs/ into this schema, so an unknown key is an error, in experiment files too. Only the `model` node
is free-form: it holds `_target_` and the arguments of that class, which are checked against its signature when the
model is built (`attnconv.models.build`).
"""

import os
import pickle
from collections.abc import Iterable, Iterator
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from attnconv.errors import ConfigError, UserError, nearest, what_to_mend
from attnconv.files import read_yaml
from attnconv.settings.limits import (
    LARGEST_SEED,
    check_folder_name,
    check_limits,
    check_model,
    check_place,
    check_rates,
    check_wandb,
    check_yaml,
)
from attnconv.settings.types import as_text, convert, plain_value, typed, untyped

# Registered at import, because a process that a launcher starts composes before it calls anything in this module.
OmegaConf.register_new_resolver("expanduser", os.path.expanduser, replace=True)
# recipe_for_model/ has one file per family; VGG shares the published settings of residual networks.
OmegaConf.register_new_resolver(
    "family", lambda model: "resnet" if "resnet" in model or model.startswith("vgg") else model, replace=True
)

# Knobs that models take as arguments of the same name.
SHARED = ("patch", "layers", "heads", "width", "hidden", "center_std", "dropout", "attention_dropout")

POOL = "ATTNCONV_POOL"  # an environment variable that a sweep or a study sets for the processes that it starts

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS, RESULTS = REPOSITORY / "configs", REPOSITORY / "results"


def knob(default: Any, meaning: str, **limits: Any) -> Any:
    """Return a dataclass field for one setting.

    Limits: choices=(...); above=, at_least=, below=, at_most=, or_zero=True (for a number, and each number of a list);
    folder=True (the name of one folder); path=True; rising=True (a list).
    """
    metadata = {"meaning": meaning, **limits}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class DataConfig:
    name: str = knob(MISSING, "the data set's name: its file in configs/data/", folder=True)
    source: str = knob(MISSING, "where images come from", choices=("cifar10", "arrays", "digits", "pairs"))
    root: str = knob("", "folder of the arrays or of the original archive", path=True)
    fraction: float = knob(1.0, "share of the training images used, per class; subsets are nested", above=0, at_most=1)
    equal: str = knob("epochs", "equal at all fractions: epochs (one epoch is one pass over the images used) or steps "
                      "(one epoch shows as many images as fraction=1, in several passes)",
                      choices=("epochs", "steps"))  # fmt: skip
    subset_seed: int = knob(0, "selects the images of a fraction; independent of seed", at_least=0,
                           at_most=LARGEST_SEED)  # fmt: skip
    holdout: float = knob(0.0, "share of the training images kept for validation, per class", at_least=0, below=1)
    mean: list[float] | None = knob(None, "mean per channel, of pixels in 0..1; null: of the training images",
                                    at_least=0, at_most=1)  # fmt: skip
    std: list[float] | None = knob(None, "std per channel, of pixels in 0..1; null: of the training images", above=0,
                                   at_most=1)  # fmt: skip
    crop_padding: int = knob(0, "pixels of padding per side before a random crop; 0: none", at_least=0, at_most=4096)
    padding_mode: str = knob("constant", "contents of the padding: constant (black) or reflect (mirrored image)",
                             choices=("constant", "reflect"))  # fmt: skip
    flip: bool = knob(False, "flip images horizontally at random")
    alternating_flip: bool = knob(False, "with flip: mirror each image in every second pass; only the first pass is "
                                  "random")  # fmt: skip
    task: str = knob("agreement", "data=pairs: the meaning of the class", choices=("agreement", "texture"))
    distance: int = knob(8, "data=pairs: distance of the two marks, in pixels; a multiple of 4", at_least=4, at_most=28)
    clutter: int = knob(6, "data=pairs: number of irrelevant marks", at_least=0)
    train_images: int = knob(10_000, "data=pairs: number of training images", at_least=2)
    test_images: int = knob(2_000, "data=pairs: number of test images", at_least=2)
    images_seed: int = knob(0, "data=pairs: seed of the images", at_least=0, at_most=LARGEST_SEED)


@dataclass
class ScaleConfig:
    name: str = knob(MISSING, "the scale's name: its file in configs/scale/", folder=True)
    layers: int = knob(6, "mixing layers", at_least=1, at_most=1000)
    heads: int = knob(9, "attention heads per layer", at_least=1, at_most=1000)
    width: int = knob(400, "channels per position", at_least=1, at_most=2**20)
    hidden: int = knob(512, "channels inside the feed-forward network", at_least=1, at_most=2**20)
    patch: int = knob(2, "side of the square of pixels that becomes one position, in pixels", at_least=1)
    center_std: float = knob(2.0, "std of the initial centers of Gaussian heads, in positions", above=0, at_most=1000)
    cnn_width: int = knob(64, "channels of the first stage of a ResNet", at_least=1, at_most=2**20)


@dataclass
class RecipeConfig:
    name: str = knob(MISSING, "the recipe's name: its file in configs/recipe/", folder=True)
    optimizer: str = knob("sgd", "sgd; adamw; muon: Muon on the layers' matrices, AdamW on the rest",
                          choices=("sgd", "adamw", "muon"))  # fmt: skip
    batch_size: int = knob(100, "images per step", at_least=1)
    lr: float = knob(0.1, "peak learning rate", above=0)
    adamw_lr: float = knob(1e-3, "with muon: peak learning rate of the parameters that AdamW trains", above=0)
    centers_lr: float | None = knob(
        None, "with Gaussian heads: peak learning rate of centers and spreads; null: as for other parameters", above=0
    )
    lr_scale: float = knob(1.0, "factor on all of these learning rates, to sweep them together", above=0)
    momentum: float = knob(0.9, "momentum of sgd and muon", at_least=0, below=1)
    weight_decay: float = knob(1e-4, "added to the gradient (sgd) or decoupled (adamw, muon)",
                               at_least=0, at_most=1000)  # fmt: skip
    schedule: str = knob("cosine", "shape of the learning rate decay", choices=("cosine", "linear", "step"))
    warmup: float = knob(0.05, "share of training in which the learning rate rises from 0; not with schedule=step",
                         at_least=0, below=1)  # fmt: skip
    lr_changes: str = knob("step", "when the learning rate changes", choices=("step", "epoch"))
    milestones: list[int] = knob([], "with schedule=step: epochs, counted from 1, from which on the learning rate is "
                                 "lower", at_least=2, rising=True)  # fmt: skip
    decay_factor: float = knob(10.0, "with schedule=step: divisor of the learning rate at each milestone", above=1)
    label_smoothing: float = knob(0.0, "probability that is spread evenly over all classes", at_least=0, below=1)
    cutmix: float = knob(0.0, "CutMix of each training batch: alpha of the Beta distribution of the share that an "
                         "image keeps (1: uniform); 0: none", at_least=0.01, or_zero=True)  # fmt: skip
    sizes: list[float] = knob([], "heights of training images as shares of the full height; each entry covers an "
                              "equal part of training; []: full size", above=0, at_most=16)  # fmt: skip
    cropped_from: float | None = knob(None, "sizes from this share on are random crops, smaller ones are scaled "
                                      "images; null: all are scaled", above=0, at_most=1)  # fmt: skip
    whitening: bool = knob(False, "initialize the stem to whiten the patches of the training images")
    dropout: float = knob(0.1, "dropout after a layer's projection and feed-forward network", at_least=0, below=1)
    attention_dropout: float = knob(0.1, "dropout of attention probabilities", at_least=0, below=1)


@dataclass
class LoggerConfig:
    name: str = knob(MISSING, "the dashboard's name: its file in configs/logger/", choices=("wandb", "trackio", "none"))
    project: str | None = knob(None, "the dashboard's project; null: WANDB_PROJECT, else attnconv", folder=True)
    entity: str | None = knob(None, "W&B's user or team; null: WANDB_ENTITY, else your own", folder=True)
    group: str | None = knob(None, "W&B's group; null: WANDB_RUN_GROUP, else all runs that differ only in the seed")
    tags: list[str] = knob([], "W&B's tags, of 1 to 64 characters; []: WANDB_TAGS, else recipe, scale and name")
    notes: str | None = knob(None, "W&B's notes; null: WANDB_NOTES")
    job_type: str | None = knob(None, "W&B's job type; null: WANDB_JOB_TYPE, else train, or tune with data.holdout")
    weights: bool = knob(False, "also store the trained weights in the dashboard, as an artifact")
    pictures_every: int = knob(10, "epochs between figures of the heads", at_least=1)


@dataclass
class Config:
    model: dict[str, Any] = knob(MISSING, "name, _target_ and the arguments of that class")
    data: DataConfig = field(default_factory=DataConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    name: str = knob("default", "the name of the experiment: the first folder below output, not a path", folder=True)
    seed: int = knob(
        0, "seed of initialization, data order, augmentation and dropout", at_least=0, at_most=LARGEST_SEED
    )
    match: str | None = knob(None, "set the width so that the cost equals that of match_model; null: keep it",
                             choices=("parameters", "flops"))  # fmt: skip
    match_model: str = knob("sa_quadratic", "with match: the model that sets the budget, at the same scale")
    epochs: int = knob(300, "number of passes over the training images", at_least=1, at_most=1_000_000)
    device: str = knob("auto", "auto (cuda if there is one), cpu, cuda, cuda:N, mps")
    precision: str = knob("auto", "auto: bf16 autocast if the hardware supports it; fp32: as in the paper",
                          choices=("auto", "fp32", "bf16"))  # fmt: skip
    compile: bool = knob(False, "torch.compile the model")
    warm_up: bool = knob(False, "compile and tune on a few discarded steps before timing starts")
    eval_every: int = knob(1, "epochs between evaluations; the last epoch is always evaluated", at_least=1)
    eval_mirrored: bool = knob(
        False,
        "with data.flip: also report acc_mirrored, from the mean logits of image and mirror image; doubles the time",
    )
    eval_batch_size: int = knob(250, "images per evaluation step", at_least=1)
    output: str = knob("outputs", "folder for run folders", path=True)
    collected: str | None = knob(None, "in a sweep: skip runs that scripts/collect.py stored in this folder",
                                path=True)  # fmt: skip
    retry_failed: bool = knob(False, "in a sweep: retry runs that failed before")
    checkpoint_minutes: float = knob(10.0, "longest time between checkpoints; every epoch also ends with one", above=0)
    checkpoint_steps: int | None = knob(None, "steps between checkpoints within an epoch; null: none", at_least=1)


SCHEMA = untyped(Config)  # on import, because processes of a sweep unpickle it by name


def register_schema() -> None:
    """Register the schema with Hydra under the name that configs/config.yaml uses."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    if "schema.yaml" not in store.repo:  # storing takes 14 ms
        store.store(name="schema", node=SCHEMA)


def freeze(composed: DictConfig) -> Config:
    """Return a composed configuration as checked plain data, with interpolations resolved.

    Raises:
        ConfigError: a value is not of its type, or outside its limits.
    """
    composed = pickle.loads(pickle.dumps(composed))  # six times as fast as composed.copy()
    convert(composed, Config)
    return _checked(typed(Config, OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)))


def checked(config: Any) -> Config:
    """Return a configuration that Python code may have edited, checked as those of command lines are.

    Raises:
        ConfigError: see `freeze`; also if it is not a configuration.
    """
    if not isinstance(config, Config):
        raise ConfigError(f"this is a {type(config).__name__}, not a configuration: make one with attnconv.compose")
    parts = [("", config), *((f"{name}.", part) for name, part in vars(config).items() if is_dataclass(part))]
    for prefix, part in parts:
        for name in vars(part).keys() - {setting.name for setting in fields(part)}:
            raise ConfigError(f"unknown setting '{prefix}{name}'{nearest(prefix + name, valid_keys())}")
    return _checked(typed(Config, plain_value(config)))


def _checked(config: Config) -> Config:
    check_limits(config)
    if config.logger.name == "wandb":
        check_wandb(config.logger)
    for key, value in {"collected": config.collected, **flatten(config.model, "model.")}.items():
        if value == "":
            raise ConfigError(f"{key} is empty: set {key}=VALUE")
    for key, value in flatten(to_plain(config)).items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                check_yaml(key, text)
    if isinstance(config.model.get("start"), str):
        config.model["start"] = os.path.expanduser(config.model["start"])
    config.output, config.data.root = map(os.path.expanduser, (config.output, config.data.root))
    if config.collected is not None:
        config.collected = os.path.expanduser(config.collected)
    _check_model(config)
    _check_source(config.data)
    _check_network(config.model)
    check_rates(config.recipe)
    check_place(config.output, [config.name, config.model["name"], f"{config.scale.name}-{config.recipe.name}"])
    return config


def _check_source(data: DataConfig) -> None:
    """Raise ConfigError for the name of one of our data sets with the source of another: results name the data set."""
    file = CONFIGS / "data" / f"{data.name}.yaml"
    if file.exists() and read_yaml(file)["source"] != data.source:
        raise ConfigError(f"data.source={data.source} is not the source of data={data.name}: choose data={data.source}")


def _check_network(node: dict[str, Any]) -> None:
    """Raise ConfigError for the name of one of our models with other classes: results name the model."""
    file = CONFIGS / "model" / f"{node['name']}.yaml"
    if not file.exists():
        return
    for path, target in _targets(file).items():
        found = flatten(node).get(path)
        if found != target:
            raise ConfigError(
                f"model.name={node['name']} is the name of another network, because model.{path} is {found}, not "
                f"{target}: choose model={node['name']}, or set another model.name"
            )


@cache
def _targets(file: Path) -> dict[str, str]:
    """Return the classes in a model file and in those that it includes, by their keys."""
    found: dict[str, str] = {}
    content = read_yaml(file)
    for included in content.get("defaults", ()):
        if included != "_self_":
            name = included.partition("@")[0]
            found |= _targets(CONFIGS / f"{name.removeprefix('/')}.yaml" if name[0] == "/" else file.with_stem(name))
    return found | {key: value for key, value in flatten(content).items() if key.endswith("_target_")}


def _check_model(config: Config) -> None:
    """Raise ConfigError for a model without a name or with a number outside its limits, and make its name text."""
    config.model["name"] = as_text("model.name", config.model.get("name", ""))
    check_folder_name("model.name", config.model["name"])
    shared = {knob_field.name: knob_field.metadata for knob_field in (*fields(RecipeConfig), *fields(ScaleConfig))}
    check_model(config.model, {name: shared[name] for name in SHARED})


def in_sweep() -> bool:
    """Return whether this process runs a sweep: `python train.py -m ...`."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def compose(overrides: Iterable[str] | None = None) -> Config:
    """Return the configuration that `python train.py OVERRIDES` would run.

    If they choose an experiment with a grid, it is that of one run, with the values that they set instead of the grid.

    Raises:
        ConfigError: see `freeze`; also if it is not a list of strings, or one cannot be read or has no effect.
    """
    from attnconv.settings.arguments import expand_home
    from attnconv.settings.composition import composed
    from attnconv.settings.contradictions import refuse_of_sweeps, require_effect
    from attnconv.settings.overrides import check_overrides, keep_text

    if overrides is not None and (isinstance(overrides, str | dict) or not isinstance(overrides, Iterable)):
        raise ConfigError(f"compose takes a list of strings, such as compose(['seed=1']), not {overrides!r}")
    given = list(overrides or [])
    if not all(isinstance(override, str) for override in given):
        raise ConfigError(f"compose takes a list of strings, such as compose(['seed=1']), not {given}")
    given = [keep_text(expand_home(override)) for override in given]
    try:
        check_overrides(given)
        refuse_of_sweeps(given)
        for override in given:
            if override.startswith(("hydra.", "hydra/")) and not override.startswith("hydra.searchpath="):
                raise ConfigError(f"{override} has no effect: compose() returns a configuration and starts nothing")
        config = freeze(composed(given))
    except Exception as error:
        message = what_to_mend(error, valid_keys())
        if message is None or isinstance(error, UserError):
            raise
        raise ConfigError(message) from error
    require_effect([(config, given)])
    return config


def to_plain(config: Config) -> dict[str, Any]:
    """Return a configuration as nested dictionaries of plain values, as in config.yaml."""
    return asdict(config)


def valid_keys(schema: Any = Config, prefix: str = "") -> Iterator[str]:
    """Yield all dotted keys of the schema and the groups of configs/."""
    if not prefix:
        yield "experiment"
        yield from _model_keys()
    for knob_field in fields(schema):
        yield prefix + knob_field.name
        if knob_field.default_factory is not NO_DEFAULT and is_dataclass(knob_field.default_factory):
            yield from valid_keys(knob_field.default_factory, f"{prefix}{knob_field.name}.")


def _model_keys() -> set[str]:
    """Return all dotted keys of all model files, and of the file that most of them include."""
    keys: set[str] = set()
    for path in (CONFIGS / "backbone.yaml", *CONFIGS.glob("model/*.yaml")):
        keys |= flatten(OmegaConf.to_container(OmegaConf.load(path)), "model.").keys()
    return keys - {"model.defaults"}


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested dictionaries as one dictionary with dotted keys."""
    if not isinstance(node, dict):
        return {prefix.removesuffix("."): node}
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= flatten(value, f"{prefix}{key}.")
    return flat
