"""Optimizers, their parameter groups, and learning-rate schedules.

Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon/) replaces the momentum of a matrix by the nearest
orthogonal matrix, approximated by a few Newton-Schulz iterations. Schedules are pure functions of the step: resuming
needs no scheduler state.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from attnconv.config import RecipeConfig
from attnconv.errors import ConfigError
from attnconv.mixers.encodings import Encoding

Group = dict[str, Any]

MATRIX_MODULES = (nn.Linear, nn.Conv1d, nn.Conv2d)

# Names of stems and heads in our networks; those of timm name theirs. VGG's first convolution has no such name.
ENDS = ("stem", "head", "patch_embed")

EPS = 1e-7

# Five iterations of x -> a x + b (x x') x + c (x x')^2 x, each with its own tuned coefficients:
# https://leloykun.github.io/ponder/muon-opt-coeffs/
QUINTIC = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)

DECAYS: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
}


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


def orthogonalize(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Bring all singular values close to 1 and keep the singular vectors.

    Args:
        matrices: (matrices, rows, columns), of any floating type.
        dtype: of the iterations and of the result; rounding to bfloat16 does not harm them.
    """
    x = matrices.to(dtype)
    tall = x.size(-2) > x.size(-1)
    if tall:  # the smaller square is cheaper
        x = x.mT
    x = (x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPS)).contiguous()
    for a, b, c in QUINTIC:
        square = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon, with Nesterov momentum and decoupled weight decay, for groups with `use_muon`; AdamW for the others.

    Convolution kernels are treated as (out, in * height * width) matrices, which torch.optim.Muon does not support. All
    matrices of one shape are orthogonalized at once, because for small ones kernel launches take most of the
    time.

    Args:
        params: groups with `use_muon`, `lr` and `weight_decay`.
        momentum: of Muon.
        dtype: of Muon's iterations: bfloat16 if the hardware supports it. Emulated, they would take a fifth of a step
            of a small network.
        betas: of AdamW.
    """

    def __init__(
        self, params: Sequence[Group], momentum: float, dtype: torch.dtype, betas: tuple[float, float] = (0.9, 0.95)
    ):
        super().__init__(params, {"momentum": momentum, "betas": betas, "eps": EPS})
        # kept in `defaults`, so that copies of the optimizer have it and checkpoints do not
        self.defaults["dtype"] = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no loss to give back
        if closure is not None:
            raise ValueError("a closure to evaluate the loss again is not supported")
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                gradients = [cast(Tensor, parameter.grad) for parameter in parameters]
                (self._step_muon if group["use_muon"] else self._step_adamw)(group, parameters, gradients)

    def _step_muon(self, group: Group, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, buffers, group["momentum"])
        _add_orthogonal(parameters, updates, group["lr"], self.defaults["dtype"])

    def _step_adamw(self, group: Group, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                self.state[parameter] |= {"step": torch.tensor(0.0), **moments}
        states = [self.state[parameter] for parameter in parameters]
        beta1, beta2 = group["betas"]
        adamw(
            parameters,
            gradients,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _add_orthogonal(parameters: list[Tensor], updates: Sequence[Tensor], lr: float, dtype: torch.dtype) -> None:
    """Subtract the orthogonalized updates from the parameters, all matrices of one shape at once."""
    by_shape: dict[torch.Size, list[int]] = {}
    for place, update in enumerate(updates):
        by_shape.setdefault(update.flatten(1).shape, []).append(place)
    for (rows, columns), places in by_shape.items():
        orthogonal = orthogonalize(torch.stack([updates[place].flatten(1) for place in places]), dtype)
        steps = orthogonal.to(parameters[places[0]].dtype).unbind()
        torch._foreach_add_(
            [parameters[place] for place in places],
            [step.view_as(parameters[place]) for step, place in zip(steps, places, strict=True)],
            alpha=-lr * max(1, rows / columns) ** 0.5,
        )


def lr_factor(recipe: RecipeConfig, epochs: int, images: int) -> Callable[[int], float]:
    """Return the factor on the peak learning rate of all parameter groups as a function of the step (0-based).

    Args:
        recipe: schedule, warmup, lr_changes, milestones, decay_factor, batch_size, lr_scale.
        epochs: length of training.
        images: training images in an epoch.
    """
    factor = _schedule(recipe, epochs, images)
    return lambda step: recipe.lr_scale * factor(step)


def _schedule(recipe: RecipeConfig, epochs: int, images: int) -> Callable[[int], float]:
    """Return the factor of the schedule alone as a function of the step (0-based)."""
    steps_per_epoch = math.ceil(images / recipe.batch_size)

    if recipe.schedule == "step":

        def drops(step: int) -> int:
            # Reference: the scheduler advances before the epoch, so a milestone takes effect one epoch early (79, not
            # 80).
            return sum(step // steps_per_epoch + 1 >= milestone for milestone in recipe.milestones)

        return lambda step: recipe.decay_factor ** -drops(step)

    if recipe.lr_changes == "epoch":
        # Reference: the length of training is counted as images // batch + 1 steps per epoch, one more than the real
        # number, so that the last epoch ends a little above 0. The scheduler is stepped once per epoch with the number
        # of steps taken so far, so epoch 0 trains at learning rate 0.
        total = epochs * (images // recipe.batch_size + 1)
        factor = _warmup_then_decay(recipe, total, first=0)
        return lambda step: factor(step // steps_per_epoch * steps_per_epoch)

    # A step at learning rate 0 would be wasted, so the first step is one step up the ramp.
    return _warmup_then_decay(recipe, epochs * steps_per_epoch, first=1)


def _warmup_then_decay(recipe: RecipeConfig, total: int, first: int) -> Callable[[int], float]:
    """Return a ramp whose step 0 is `first` steps above 0, followed by the recipe's decay to 0 at `total`."""
    warmup = int(recipe.warmup * total)
    decay = DECAYS[recipe.schedule]

    def factor(step: int) -> float:
        if step < warmup:
            return (step + first) / warmup
        return decay((step - warmup) / max(1, total - warmup))

    return factor
