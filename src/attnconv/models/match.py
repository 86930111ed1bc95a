"""Match costs: scale a model's width until its parameters or FLOPs equal those of another model.

A network around a mixer has two widths, of its positions and of its feed-forward network. Both are scaled together, and
the second one then absorbs the rounding. A convolutional network has one width, which may be fractional: each stage
rounds it.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from omegaconf import OmegaConf

from attnconv.config import CONFIGS, Config
from attnconv.errors import ConfigError, nearest
from attnconv.models.build import may_be_fraction
from attnconv.models.cost import build_unfilled, forward_once, parameters

TOLERANCE = 0.02
WIDEST = 2**16
NEIGHBORS = 64  # some mixers need an even width, or one divisible by their heads

Node = dict[str, Any]


@dataclass(frozen=True)
class Match:
    """A scaled model node, its cost, and the target cost."""

    node: Node
    budget: str
    target: int
    achieved: int

    @property
    def difference(self) -> float:
        """Return (achieved - target) / target."""
        return self.achieved / self.target - 1


def match_model(config: Config, image_shape: tuple[int, int, int], classes: int) -> Match:
    """Scale the `model` node of a configuration that sets `match`.

    Raises:
        ConfigError: see `match_width`; match_model does not exist.
    """
    assert config.match is not None
    reference = model_node(config.match_model, like=config)
    return match_width(config.model, reference, config.match, image_shape, classes)


def model_node(name: str, like: Config) -> dict[str, Any]:
    """Return the `model` node of another model, under the scale and the recipe of `like`.

    Raises:
        ConfigError: the model does not exist, or needs settings of its own.
    """
    from hydra import compose as hydra_compose
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue

    from attnconv.settings.composition import composed

    # Inside a command, Hydra is already initialized and knows the folders that --config-dir added.
    inside_command = GlobalHydra.instance().is_initialized()
    try:
        found = hydra_compose("config", [f"model={name}"]) if inside_command else composed([f"model={name}"])
    except (HydraException, ValueError) as error:  # ValueError: model=5 is not a name
        valid = {path.stem for path in CONFIGS.glob("model/*.yaml")}
        raise ConfigError(f"match_model={name} does not exist{nearest(name, valid)}") from error
    for part in ("scale", "recipe"):
        OmegaConf.update(found, part, asdict(getattr(like, part)))
    try:
        node = OmegaConf.to_container(found.model, resolve=True, throw_on_missing=True)
    except (MissingMandatoryValue, InterpolationToMissingValueError) as error:
        raise ConfigError(f"match_model={name} has a setting without a default, and cannot be a reference") from error
    assert isinstance(node, dict)
    return {str(key): value for key, value in node.items()}


def match_width(node: Node, reference: Node, budget: str, image_shape: tuple[int, int, int], classes: int) -> Match:
    """Return `node` with its width scaled to the cost of `reference`, within 2%.

    Args:
        node, reference: two `model` nodes, resolved.
        budget: "parameters", or "flops" (all of them, per image).
        image_shape: (C, H, W) in pixels.
        classes: number of classes.

    Raises:
        ConfigError: the model has no width, or no width comes within 2%.
    """
    if "width" not in node:
        raise ConfigError(
            f"model={node['name']} has no width for match={budget} to scale; if its class takes one, add it to its file"
        )
    if not _is_size(node["width"]):
        raise ConfigError(f"match={budget} needs a positive number for model.width, not {node['width']}")
    two = _is_size(node.get("hidden"))

    costs: dict[tuple[Any, Any], int] = {}

    def cost(candidate: Node) -> int:
        widths = candidate["width"], candidate.get("hidden")
        if widths not in costs:
            costs[widths] = count(candidate)
        return costs[widths]

    def count(candidate: Node) -> int:
        if budget == "parameters":
            return parameters(build_unfilled(candidate, image_shape, classes))
        flops = forward_once(candidate, image_shape, classes).flops_full
        if flops is None:
            raise ConfigError(
                f"match=flops: the FLOPs of model={candidate['name']} cannot be counted, because it reads the values "
                "of its tensors or has an operator of its own; set match=parameters"
            )
        return flops

    target = count(reference)
    if not target:
        raise ConfigError(f"match_model={reference['name']} has no {budget}, so it sets no budget")
    scaled = _match_two_widths(node, target, cost) if two else _match_one_width(node, target, cost)
    result = Match(scaled, budget, target, cost(scaled))
    if abs(result.difference) > TOLERANCE:
        raise ConfigError(
            f"no width of model={node['name']} comes within {TOLERANCE:.0%} of the {target:,} {budget} of "
            f"model={reference['name']}: the nearest, model.width={scaled['width']}, has {result.achieved:,}"
        )
    return result


def _is_size(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _match_one_width(node: Node, target: int, cost: Callable[[Node], int]) -> Node:
    """Scale a width in sixteenths if it may be a fraction, else in whole numbers."""
    parts = 16 if may_be_fraction(node, "width") else 1

    def at(number: int) -> Node:
        return {**node, "width": number if parts == 1 else number / parts}

    def cost_near(number: int) -> int:
        return cost(at(_buildable(number, at, cost)))

    return at(_buildable(_nearest(parts, parts, cost_near, target), at, cost))


def _match_two_widths(node: Node, target: int, cost: Callable[[Node], int]) -> Node:
    def at(width: int) -> Node:
        return {**node, "width": width, "hidden": max(1, round(node["hidden"] * width / node["width"]))}

    def cost_near(width: int) -> int:
        return cost(at(_buildable(width, at, cost)))

    base = at(_buildable(_nearest(1, node["width"], cost_near, target), at, cost))
    hidden = _nearest(1, base["hidden"], lambda hidden: cost({**base, "hidden": hidden}), target)
    return {**base, "hidden": hidden}


def _buildable(width: int, at: Callable[[int], Node], cost: Callable[[Node], int]) -> int:
    """Return the width, or the next larger one that the model accepts."""
    refusal = None
    for candidate in range(width, width + NEIGHBORS):
        try:
            cost(at(candidate))
        except ConfigError as error:
            refusal = error
        else:
            return candidate
    raise ConfigError(f"match needs model.width={width:g} or more: {refusal}") from refusal


def _nearest(lowest: int, start: int, cost: Callable[[int], int], target: int) -> int:
    """Return the integer, at least `lowest`, whose cost is nearest to the target: double the step, then bisect.

    The cost must not fall as the integer grows. Each evaluation builds a model, so the search starts from an estimate.
    """
    guess = _estimate(lowest, start, cost, target)
    low, high, step = lowest, guess, 1
    while high < WIDEST and cost(high) < target:
        low, high, step = high + 1, min(WIDEST, high + step), 2 * step
    if step == 1:  # the guess was not too small: search downwards
        while high > lowest and cost(max(lowest, high - step)) >= target:
            high, step = max(lowest, high - step), 2 * step
        low = max(lowest, high - step)
    while low < high:
        middle = (low + high) // 2
        if cost(middle) < target:
            low = middle + 1
        else:
            high = middle
    return min({low, max(lowest, low - 1)}, key=lambda number: abs(cost(number) - target))


def _estimate(lowest: int, start: int, cost: Callable[[int], int], target: int) -> int:
    """Guess the integer with this cost: the root of a cost is nearly a line, through 0 and then through two costs."""
    one, other = 0, start
    for _ in range(3):
        roots = [math.sqrt(cost(number)) if number else 0.0 for number in (one, other)]
        if roots[0] == roots[1]:
            break
        next_one = other + (math.sqrt(target) - roots[1]) * (other - one) / (roots[1] - roots[0])
        one, other = other, min(WIDEST, max(lowest, math.ceil(next_one)))
    return other
