"""Optimisers and their parameter groups."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from timm.optim.muon import _COEFFICIENTS, Muon, get_lr_scale, resolve_ns_coefficients, zeropower_via_newtonschulz
from torch import Tensor, nn

from attnconv.config import RecipeConfig
from attnconv.mixers.encodings import Encoding

MATRIX_MODULES = (nn.Linear, nn.Conv1d, nn.Conv2d)

# First parts of the names of stems and heads: ours, and timm's.
ENDS = ("stem", "head", "patch_embed")

Group = dict[str, Any]


class BatchedMuon(Muon):
    """timm's Muon with the Newton-Schulz iterations of all matrices of one shape done at once.

    The same numbers up to rounding, in a tenth of the kernels: on small matrices they, not the products, take the time.
    Unlike torch.optim.Muon timm's flattens the kernels of convolutions to matrices, and has AdamW for the rest.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no loss to give back
        if closure is not None:
            raise ValueError("a closure to evaluate the loss again is not supported")
        groups = self.param_groups
        for group in groups:
            if group["use_muon"]:
                self._step_matrices(group)
        self.param_groups = [group for group in groups if not group["use_muon"]]
        try:
            super().step()
        finally:
            self.param_groups = groups

    def _step_matrices(self, group: Group) -> None:
        """Step one group, as timm's function `muon` does one matrix after the other."""
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not parameters:
            return
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter] |= {"use_muon": True, "momentum_buffer": torch.zeros_like(parameter)}
        gradients = [cast(Tensor, parameter.grad) for parameter in parameters]
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, buffers, group["momentum"]) if group["nesterov"] else buffers
        _add_orthogonal(parameters, updates, group)


def _add_orthogonal(parameters: list[nn.Parameter], updates: Sequence[Tensor], group: Group) -> None:
    """Move parameters against their updates made orthogonal, all matrices of one shape at once."""
    by_shape: dict[torch.Size, list[int]] = {}
    for place, update in enumerate(updates):
        by_shape.setdefault(update.flatten(1).shape, []).append(place)
    coefficients = resolve_ns_coefficients(group["ns_coefficients"], _COEFFICIENTS)
    for shape, places in by_shape.items():
        matrices = torch.stack([updates[place].flatten(1) for place in places])
        orthogonal = zeropower_via_newtonschulz(
            matrices, group["ns_steps"], coefficients, eps=group["eps"], safety_factor=group["safety_factor"]
        )
        steps = orthogonal.to(parameters[places[0]].dtype).unbind()
        scale = get_lr_scale(shape, group["adjust_lr_fn"])
        torch._foreach_add_(
            [parameters[place] for place in places],
            [step.view_as(parameters[place]) for step, place in zip(steps, places, strict=True)],
            alpha=-group["lr"] * scale,
        )


def build_optimizer(model: nn.Module, recipe: RecipeConfig) -> torch.optim.Optimizer:
    """The recipe's optimiser. Every group keeps its peak learning rate in `initial_lr`, for the schedule."""
    if recipe.optimizer == "sgd":
        # Reference: biases and norms decay like everything else; only centers and spreads do not.
        groups = _groups(model, list(model.parameters()), recipe, recipe.lr, decay_vectors=True)
        optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, momentum=recipe.momentum)
    elif recipe.optimizer == "adamw":
        groups = _groups(model, list(model.parameters()), recipe, recipe.lr, decay_vectors=False)
        optimizer = torch.optim.AdamW(groups)
    else:
        optimizer = _muon(model, recipe)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Weights of linear and convolutional layers between the stem and the head, encodings left out."""
    in_encodings = {id(parameter) for encoding in _encodings(model) for parameter in encoding.parameters()}
    # Linear and convolutional layers differ in what mypy knows of `weight`; all of theirs are parameters.
    return [
        cast(nn.Parameter, module.weight)
        for name, module in model.named_modules()
        if isinstance(module, MATRIX_MODULES)
        and name.split(".")[0] not in ENDS
        and id(module.weight) not in in_encodings
    ]


def _encodings(model: nn.Module) -> list[Encoding]:
    return [module for module in model.modules() if isinstance(module, Encoding)]


def _groups(
    model: nn.Module, parameters: list[nn.Parameter], recipe: RecipeConfig, lr: float, decay_vectors: bool
) -> list[Group]:
    """Groups of `parameters` by learning rate (centers and spreads may have their own) and weight decay."""
    exempt = {id(getattr(encoding, name)) for encoding in _encodings(model) for name in encoding.no_weight_decay()}
    groups: dict[tuple[float, float], Group] = {}
    for parameter in parameters:
        own_lr = recipe.centers_lr if id(parameter) in exempt else None
        spared = id(parameter) in exempt or (parameter.dim() < 2 and not decay_vectors)
        key = own_lr or lr, 0.0 if spared else recipe.weight_decay
        groups.setdefault(key, {"params": [], "lr": key[0], "weight_decay": key[1]})["params"].append(parameter)
    return list(groups.values())


def _muon(model: nn.Module, recipe: RecipeConfig) -> torch.optim.Optimizer:
    matrices = hidden_matrices(model)
    taken = {id(parameter) for parameter in matrices}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in taken]
    muon = {"params": matrices, "lr": recipe.lr, "weight_decay": recipe.weight_decay}
    adamw = _groups(model, rest, recipe, recipe.adamw_lr, decay_vectors=False)
    groups = [{**muon, "use_muon": True, "nesterov": True}, *({**group, "use_muon": False} for group in adamw)]
    return BatchedMuon(groups, momentum=recipe.momentum, adjust_lr_fn="original")
