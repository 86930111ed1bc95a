"""Optimizers and their parameter groups."""

from collections.abc import Iterator

import torch
from torch import nn

from attnconv.config import RecipeConfig
from attnconv.errors import ConfigError
from attnconv.mixers.encodings import Encoding
from attnconv.training.muon import Group, Muon

MATRIX_MODULES = (nn.Linear, nn.Conv1d, nn.Conv2d)

# Names of stems and heads in our networks; those of timm name theirs. VGG's first convolution has no such name.
ENDS = ("stem", "head", "patch_embed")


def build_optimizer(model: nn.Module, recipe: RecipeConfig, precision: str) -> torch.optim.Optimizer:
    """Build the optimizer of all trainable parameters; each group keeps its peak learning rate in `initial_lr`.

    Args:
        precision: of the run, "bf16" or "fp32" (attnconv.training.device).
    """
    if recipe.optimizer == "sgd":
        # Reference: biases and norms decay like all other parameters; only centers and spreads do not.
        groups = _groups(model, _trained(model), recipe, recipe.lr, decay_vectors=True)
        optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, momentum=recipe.momentum)
    elif recipe.optimizer == "adamw":
        groups = _groups(model, _trained(model), recipe, recipe.lr, decay_vectors=False)
        optimizer = torch.optim.AdamW(groups)
    else:
        optimizer = _muon(model, recipe, torch.bfloat16 if precision == "bf16" else torch.float32)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def require_all_trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Raise ConfigError for a parameter that requires a gradient, and did not when the optimizer was built."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in held:
            raise ConfigError(f"the network cannot be trained: {thawed(name)}")


def thawed(name: str) -> str:
    """Return what is wrong with a parameter that was frozen when the network was built."""
    return (
        f"{name} is frozen at first, so the optimizer lacks it, and requires a gradient later; leave it unfrozen, and "
        "detach() it as long as it should not learn"
    )


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights of linear and convolutional layers between stem and head, without encodings.

    Shared weights occur once. Weights that are computed from other parameters, as by weight norm, are not included.
    """
    ends = tuple(f"{end}." for end in (*ENDS, *_ends_in_timm(model)))
    in_encodings = {id(parameter) for encoding in _encodings(model) for parameter in encoding.parameters()}
    weights = [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, MATRIX_MODULES)
        and not f"{name}.".startswith(ends)
        and isinstance(module.weight, nn.Parameter)
        and module.weight.numel()
        and not module.weight.is_complex()  # Muon would drop the imaginary part
        and id(module.weight) not in in_encodings
    ]
    return list(dict.fromkeys(weights))


def _ends_in_timm(model: nn.Module) -> Iterator[str]:
    """Yield the names of the first convolutions and the classifiers of a network of timm."""
    described = getattr(model, "pretrained_cfg", None)
    if not isinstance(described, dict):
        return
    for names in (described.get("first_conv"), described.get("classifier")):
        yield from names if isinstance(names, list | tuple) else (names,) if isinstance(names, str) else ()


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _encodings(model: nn.Module) -> list[Encoding]:
    return [module for module in model.modules() if isinstance(module, Encoding)]


def _groups(
    model: nn.Module, parameters: list[nn.Parameter], recipe: RecipeConfig, lr: float, decay_vectors: bool
) -> list[Group]:
    """Group `parameters` by learning rate (centers and spreads may have their own) and by weight decay."""
    exempt = {id(getattr(encoding, name)) for encoding in _encodings(model) for name in encoding.no_weight_decay()}
    groups: dict[tuple[float, float], Group] = {}
    for parameter in parameters:
        own_lr = recipe.centers_lr if id(parameter) in exempt else None
        spared = id(parameter) in exempt or (parameter.dim() < 2 and not decay_vectors)
        key = own_lr or lr, 0.0 if spared else recipe.weight_decay
        groups.setdefault(key, {"params": [], "lr": key[0], "weight_decay": key[1]})["params"].append(parameter)
    return list(groups.values())


def _muon(model: nn.Module, recipe: RecipeConfig, dtype: torch.dtype) -> torch.optim.Optimizer:
    matrices = hidden_matrices(model)
    taken = {id(parameter) for parameter in matrices}
    rest = [parameter for parameter in _trained(model) if id(parameter) not in taken]
    muon = {"params": matrices, "lr": recipe.lr, "weight_decay": recipe.weight_decay, "use_muon": True}
    adamw = _groups(model, rest, recipe, recipe.adamw_lr, decay_vectors=False)
    return Muon([muon, *({**group, "use_muon": False} for group in adamw)], recipe.momentum, dtype)
