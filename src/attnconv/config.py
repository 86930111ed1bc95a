"""The one list of knobs: their types, units, limits and meaning.

Hydra composes configs/ into this schema, so an unknown key anywhere, experiment files included, is an error. The
`model` node alone is free-form: `_target_` and the arguments of that class, checked against its signature when the
model is built (`attnconv.models.build`).
"""

import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from attnconv.errors import ConfigError, nearest
from attnconv.settings.limits import LARGEST_SEED, check_folder_name, check_limits, check_model, check_place

# Settings of older runs that are gone, with the value under which such a run is what the schema still describes.
RETIRED = {"recipe.ema": None}

# Code that has moved: what older runs call it, and its name today.
MOVED = {
    "attnconv.mixers.distance.distance_encoding": "attnconv.mixers.continuous_bias.distance_encoding",
    "attnconv.models.zoo.timm_model": "attnconv.models.timm_models.timm_model",
}

# Here, because a process that a launcher starts imports this module, and composes before it calls anything in it.
OmegaConf.register_new_resolver("expanduser", os.path.expanduser, replace=True)
# recipe_for_model/ has one file per family; VGG shares the published settings of residual networks.
OmegaConf.register_new_resolver(
    "family", lambda model: "resnet" if "resnet" in model or model.startswith("vgg") else model, replace=True
)

# Knobs that models take as arguments of the same name.
SHARED = ("patch", "layers", "heads", "width", "hidden", "center_std", "dropout", "attention_dropout")

POOL = "ATTNCONV_POOL"  # a variable that a sweep or a study sets for the processes that it starts

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def knob(default: Any, meaning: str, **limits: Any) -> Any:
    """A setting. Limits: choices=(...); above=, at_least=, below=, at_most= (numbers, and each of a list of numbers);
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
    equal: str = knob("epochs", "what is equal at every fraction: epochs (one is a pass over the images used) or steps "
                      "(an epoch shows as many images as fraction=1 has, in several passes)",
                      choices=("epochs", "steps"))  # fmt: skip
    subset_seed: int = knob(0, "which images a fraction holds; apart from the initialization's seed", at_least=0,
                           at_most=LARGEST_SEED)  # fmt: skip
    holdout: float = knob(0.0, "share of the training images kept for validation, per class", at_least=0, below=1)
    mean: list[float] | None = knob(None, "per channel, of pixels in 0..1; null: of the training images", at_least=0,
                                    at_most=1)  # fmt: skip
    std: list[float] | None = knob(None, "per channel, of pixels in 0..1; null: of the training images", above=0,
                                   at_most=1)  # fmt: skip
    crop_padding: int = knob(0, "pixels of padding per side before a random crop; 0: none", at_least=0, at_most=4096)
    padding_mode: str = knob("constant", "what those pixels are: constant (black); reflect (the image, mirrored)",
                             choices=("constant", "reflect"))  # fmt: skip
    flip: bool = knob(False, "random horizontal flips")
    alternating_flip: bool = knob(False, "with flip: mirror each image in every other pass; only its first pass is "
                                  "random")  # fmt: skip
    task: str = knob("agreement", "of pairs: what the class is", choices=("agreement", "texture"))
    distance: int = knob(8, "of pairs: between the two marks, in pixels; a multiple of 4", at_least=4, at_most=28)
    clutter: int = knob(6, "of pairs: marks that mean nothing", at_least=0)
    train_images: int = knob(10_000, "of pairs: training images made", at_least=2)
    test_images: int = knob(2_000, "of pairs: test images made", at_least=2)
    images_seed: int = knob(0, "of pairs: which images are made", at_least=0, at_most=LARGEST_SEED)


@dataclass
class ScaleConfig:
    name: str = knob(MISSING, "the scale's name: its file in configs/scale/", folder=True)
    layers: int = knob(6, "mixing layers", at_least=1, at_most=1000)
    heads: int = knob(9, "attention heads per layer", at_least=1, at_most=1000)
    width: int = knob(400, "channels of a position", at_least=1, at_most=2**20)
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
    adamw_lr: float = knob(1e-3, "with muon: peak learning rate of what AdamW trains", above=0)
    centers_lr: float | None = knob(
        None, "with Gaussian heads: peak learning rate of centers and spreads; null: as others", above=0
    )
    lr_scale: float = knob(1.0, "what all of these learning rates are multiplied by, to sweep them together", above=0)
    momentum: float = knob(0.9, "of sgd and muon", at_least=0, below=1)
    weight_decay: float = knob(1e-4, "as the optimizer defines it: added to the gradient (sgd) or decoupled",
                               at_least=0, at_most=1000)  # fmt: skip
    schedule: str = knob("cosine", "how the learning rate falls", choices=("cosine", "linear", "step"))
    warmup: float = knob(0.05, "share of training in which the learning rate rises from 0; not for step",
                         at_least=0, below=1)  # fmt: skip
    lr_changes: str = knob("step", "when the learning rate changes", choices=("step", "epoch"))
    milestones: list[int] = knob([], "with schedule=step: epochs at which the learning rate falls", at_least=1,
                                 rising=True)  # fmt: skip
    decay_factor: float = knob(10.0, "with schedule=step: what the learning rate is divided by", above=1)
    label_smoothing: float = knob(0.0, "probability spread over all classes", at_least=0, below=1)
    cutmix: float = knob(0.0, "CutMix of every training batch: alpha of the Beta distribution of the share that an "
                         "image keeps (1: uniform); 0: none", at_least=0)  # fmt: skip
    sizes: list[float] = knob([], "height of training images as a share of the full height; training has one "
                              "equal part per entry; []: full size", above=0, at_most=16)  # fmt: skip
    cropped_from: float | None = knob(None, "sizes from this share on are random crops, smaller ones scaled images; "
                                      "null: all are scaled", above=0, at_most=1)  # fmt: skip
    whitening: bool = knob(False, "whether the stem starts by whitening the patches of the training images")
    dropout: float = knob(0.1, "after a layer's projection and feed-forward network", at_least=0, below=1)
    attention_dropout: float = knob(0.1, "on attention probabilities", at_least=0, below=1)


@dataclass
class LoggerConfig:
    name: str = knob(MISSING, "the dashboard's name: its file in configs/logger/", choices=("wandb", "trackio", "none"))
    project: str | None = knob(None, "the dashboard's project; null: WANDB_PROJECT, else attnconv", folder=True)
    entity: str | None = knob(None, "W&B's user or team; null: WANDB_ENTITY, else your own", folder=True)
    group: str | None = knob(None, "runs that W&B averages; null: WANDB_RUN_GROUP, else those that differ in the seed")
    tags: list[str] = knob([], "of W&B; []: WANDB_TAGS, else recipe, scale and name")
    notes: str | None = knob(None, "a remark for W&B; null: WANDB_NOTES")
    job_type: str | None = knob(None, "of W&B; null: WANDB_JOB_TYPE, else train, or tune with data.holdout")
    weights: bool = knob(False, "whether the dashboard also keeps the trained weights, as an artifact")
    pictures_every: int = knob(10, "epochs between pictures of the heads", at_least=1)


@dataclass
class Config:
    model: dict[str, Any] = knob(MISSING, "name, _target_, and the arguments of that class")
    data: DataConfig = field(default_factory=DataConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    name: str = knob("default", "the study that the run belongs to: first folder below output, not a path", folder=True)
    seed: int = knob(0, "of initialization, data order, augmentation and dropout", at_least=0, at_most=LARGEST_SEED)
    match: str | None = knob(None, "scale the model's width until it costs what match_model does; null: leave it",
                             choices=("parameters", "flops"))  # fmt: skip
    match_model: str = knob("sa_quadratic", "with match: the model that sets the budget, at the same scale")
    epochs: int = knob(300, "passes over the training images", at_least=1, at_most=1_000_000)
    device: str = knob("auto", "auto (cuda if there is one), cpu, cuda, cuda:N, mps")
    precision: str = knob("auto", "auto: bf16 autocast where the hardware has it; fp32: as in the paper",
                          choices=("auto", "fp32", "bf16"))  # fmt: skip
    compile: bool = knob(False, "torch.compile the model")
    warm_up: bool = knob(False, "compile and tune on a few throwaway steps before the clock starts")
    eval_every: int = knob(1, "epochs between evaluations; the last epoch always has one", at_least=1)
    eval_mirrored: bool = knob(
        False,
        "with data.flip: evaluate mirror images, too, in twice the time: acc_mirrored is of mean logits (mirror TTA)",
    )
    eval_batch_size: int = knob(250, "images per step of an evaluation", at_least=1)
    output: str = knob("outputs", "where run folders go", path=True)
    collected: str | None = knob(None, "in a sweep: a folder that scripts/collect.py wrote; its runs are not run again",
                                path=True)  # fmt: skip
    retry_failed: bool = knob(False, "in a sweep: whether to retry cells that failed before")
    checkpoint_minutes: float = knob(10.0, "longest time between checkpoints; every epoch ends with one", above=0)
    checkpoint_steps: int | None = knob(None, "steps between checkpoints within an epoch; null: none", at_least=1)


def register_schema() -> None:
    """Make the schema known to Hydra under the name that configs/config.yaml starts from."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=Config)


def freeze(composed: DictConfig) -> Config:
    """Resolve a composed configuration into plain data, checked.

    Raises:
        ConfigError: a value is outside its limits.
    """
    _refuse_additions(composed, Config)
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    check_limits(config)
    for key, value in flatten(config.model, "model.").items():
        if value == "":
            raise ConfigError(f"{key} is empty: say {key}=VALUE")
    config.output, config.data.root = map(os.path.expanduser, (config.output, config.data.root))
    if config.collected is not None:
        config.collected = os.path.expanduser(config.collected)
    _check_model(config)
    check_place(config.output, [config.name, str(config.model["name"]), f"{config.scale.name}-{config.recipe.name}"])
    return config


def _check_model(config: Config) -> None:
    """Raise ConfigError for a model without a name, or with numbers that no model can have."""
    check_folder_name("model.name", str(config.model.get("name") or ""))
    shared = {knob_field.name: knob_field.metadata for knob_field in (*fields(RecipeConfig), *fields(ScaleConfig))}
    check_model(config.model, {name: shared[name] for name in SHARED})


def _refuse_additions(node: DictConfig, schema: type, prefix: str = "") -> None:
    """Raise ConfigError for a key that `+key=value` added to the schema's, which Hydra allows."""
    known = {knob_field.name: knob_field for knob_field in fields(schema)}
    for key in node:
        name = f"{prefix}{key!s}"
        if key not in known:
            raise ConfigError(f"there is no setting '{name}'{nearest(name, valid_keys())}")
        part = known[str(key)].default_factory
        if part is not NO_DEFAULT and is_dataclass(part):
            _refuse_additions(node[key], part, f"{prefix}{key}.")


def in_sweep() -> bool:
    """Whether this process works through the runs of a sweep: `python train.py -m ...`."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def compose(overrides: list[str] | None = None) -> Config:
    """The configuration that `python train.py OVERRIDES` runs, for notebooks and tests."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    from attnconv.settings.contradictions import require_effect
    from attnconv.settings.overrides import check_overrides

    register_schema()
    check_overrides(overrides or [])
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = freeze(hydra_compose("config", overrides or []))
    require_effect([(config, overrides or [])])
    return config


def model_node(name: str, like: Config) -> dict[str, Any]:
    """The `model` node of another model, under the scale and the recipe of `like`.

    Raises:
        ConfigError: there is no such model.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    register_schema()
    # Inside a command Hydra is running already, and knows the folders that --config-dir added.
    at_work = GlobalHydra.instance().is_initialized()
    with nullcontext() if at_work else initialize_config_dir(str(CONFIGS), version_base="1.3"):
        try:
            composed = hydra_compose("config", [f"model={name}"])
        except HydraException as error:
            valid = {path.stem for path in CONFIGS.glob("model/*.yaml")}
            raise ConfigError(f"match_model={name} does not exist{nearest(name, valid)}") from error
    for part in ("scale", "recipe"):
        composed[part] = OmegaConf.structured(getattr(like, part))
    node = OmegaConf.to_container(composed.model, resolve=True, throw_on_missing=True)
    assert isinstance(node, dict)
    return {str(key): value for key, value in node.items()}


def to_plain(config: Config) -> dict[str, Any]:
    """Nested dictionaries of plain values, as config.yaml holds them."""
    plain = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def up_to_date(plain: dict[str, Any]) -> dict[str, Any]:
    """Return the content of an older run's config.yaml as this version writes it.

    Retired settings that were off are left out, and code that has moved has its name of today.
    """
    for key, off in RETIRED.items():
        part, _, leaf = key.rpartition(".")
        node = plain.get(part)
        if isinstance(node, dict) and node.get(leaf) == off:
            node.pop(leaf, None)
    if "model" in plain:
        plain["model"] = _renamed(plain["model"])
    return plain


def _renamed(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: MOVED.get(value, value) if key == "_target_" else _renamed(value) for key, value in node.items()}
    return [_renamed(item) for item in node] if isinstance(node, list) else node


def valid_keys(schema: Any = Config, prefix: str = "") -> Iterator[str]:
    """Every dotted key of the schema, and the groups that a command line may name."""
    if not prefix:
        yield "experiment"
        yield from _model_keys()
    for knob_field in fields(schema):
        yield prefix + knob_field.name
        if knob_field.default_factory is not NO_DEFAULT and is_dataclass(knob_field.default_factory):
            yield from valid_keys(knob_field.default_factory, f"{prefix}{knob_field.name}.")


def _model_keys() -> set[str]:
    """Every dotted key of every model file."""
    keys: set[str] = set()
    for path in CONFIGS.glob("model/*.yaml"):
        keys |= flatten(OmegaConf.to_container(OmegaConf.load(path)), "model.").keys()
    return keys


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    if not isinstance(node, dict):
        return {prefix.removesuffix("."): node}
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= flatten(value, f"{prefix}{key}.")
    return flat
