"""Muon for matrices and AdamW for all other parameters, in one optimizer.

Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon/) replaces the momentum of a matrix by the nearest
orthogonal matrix, approximated by a few Newton-Schulz iterations.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.adamw import adamw

Group = dict[str, Any]

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
