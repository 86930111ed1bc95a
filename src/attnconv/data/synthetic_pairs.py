"""Images that test the reach of a mixer: the class is a local texture, or a relation over a distance.

Each image contains both; `task` chooses which one is the class:

    texture     a block of 8 x 8 pixels with horizontal (0) or vertical (1) stripes;
    agreement   marks of 2 x 2 pixels, red or blue; exactly two of them lie `distance` pixels apart along a row or a
                column, in different colors (class 0) or the same color (class 1).

The other marks, `clutter` in number, have random colors, and none lies at that distance from another mark. Marks lie on
a grid of cells of 4 x 4 pixels, so with patches of 4, one position holds a whole mark. No single mark determines the
class: some pixel must see two marks and their distance. `accuracy_of_counting` is the accuracy of adding up marks by
color and place without seeing pairs. It is a little above chance, because two equal marks change a sum more than two
different ones.

Draws come from counters (seed, split), and rendering uses integers, so all devices give the same images.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attnconv.errors import DataError

SIDE, CELL, MARK, BLOCK = 32, 4, 2, 8  # pixels
CELLS = SIDE // CELL
COLORS = ((220, 40, 40), (40, 40, 220))  # red, blue
NEIGHBORS = 5  # cells that one mark blocks for the next: its own, and four at the distance
STRIPES = 40  # gray levels above and below the background
STREAM = 5


@dataclass(frozen=True)
class Scene:
    """The contents of one split's images, one entry per image; places are (row, column) in pixels."""

    background: np.ndarray  # (n,) gray level
    block: np.ndarray  # (n, 2) place of the texture
    vertical: np.ndarray  # (n,) 0 or 1
    marks: np.ndarray  # (n, 2 + clutter, 2) places, the pair first
    colors: np.ndarray  # (n, 2 + clutter, 3)
    agree: np.ndarray  # (n,) 0 or 1


def draw_scene(count: int, distance: int, clutter: int, seed: int, split: int) -> Scene:
    """Draw the scenes of `count` images from the counter (seed, split).

    Raises:
        DataError: marks at that distance, or that number of marks, do not fit into the image.
    """
    if distance % CELL or not CELL <= distance <= SIDE - CELL:
        raise DataError(f"data.distance must be a multiple of {CELL} in {CELL}..{SIDE - CELL} pixels, not {distance}")
    most = CELLS * CELLS // NEIGHBORS - 2
    if clutter > most:
        raise DataError(f"data.clutter={clutter} marks do not fit next to the pair; use at most {most}")
    draw = np.random.default_rng([STREAM, seed, split])
    cells = _add_clutter(draw, _draw_pairs(draw, count, distance // CELL), clutter, distance // CELL)
    # The marks of an image share their offset within the cells, so that distances are whole cells.
    offsets = draw.integers(0, CELL - MARK + 1, size=(count, 1, 2))
    agree = draw.permutation(np.arange(count) % 2)
    kinds = draw.integers(0, 2, size=(count, 2 + clutter))
    kinds[:, 1] = np.where(agree == 1, kinds[:, 0], 1 - kinds[:, 0])
    return Scene(
        background=draw.integers(90, 161, count),
        block=draw.integers(0, (SIDE - BLOCK) // CELL + 1, size=(count, 2)) * CELL,
        vertical=draw.permutation(np.arange(count) % 2),
        marks=cells * CELL + offsets,
        colors=np.array(COLORS)[kinds],
        agree=agree,
    )


def _add_clutter(draw: np.random.Generator, cells: np.ndarray, clutter: int, distance: int) -> np.ndarray:
    """Return cells with clutter added, (count, 2 + clutter, 2).

    Each is placed at random, on no other mark and not `distance` from one.
    """
    rows, columns = np.divmod(np.arange(CELLS * CELLS), CELLS)
    apart = np.abs(rows[:, None] - rows), np.abs(columns[:, None] - columns)
    closes = (np.minimum(*apart) == 0) & np.isin(np.maximum(*apart), (0, distance))
    for _ in range(clutter):
        taken = cells[..., 0] * CELLS + cells[..., 1]
        closed = closes[taken].any(axis=1)
        free = np.where(closed, -1.0, draw.random((len(cells), CELLS * CELLS)))
        added = np.stack(np.divmod(free.argmax(axis=1), CELLS), axis=-1)
        cells = np.concatenate([cells, added[:, None]], axis=1)
    return cells


def _draw_pairs(draw: np.random.Generator, count: int, distance: int) -> np.ndarray:
    """Return the cells of pairs `distance` cells apart along a row or a column, in random order, (count, 2, 2)."""
    along, across = draw.integers(0, CELLS - distance, count), draw.integers(0, CELLS, count)
    first = np.stack([across, along], axis=-1)
    second = np.stack([across, along + distance], axis=-1)
    pairs = np.stack([first, second], axis=1)
    upright, swapped = draw.integers(0, 2, count) == 1, draw.integers(0, 2, count) == 1
    pairs[upright] = pairs[upright][..., ::-1]
    pairs[swapped] = pairs[swapped][:, ::-1]
    return pairs


def render(scene: Scene, device: torch.device) -> Tensor:
    """Return the images, (n, 32, 32, 3) uint8 on the device."""
    count = len(scene.background)
    images = torch.from_numpy(scene.background).to(device).view(-1, 1, 1, 1).expand(count, SIDE, SIDE, 3).clone()
    image = torch.arange(count, device=device).view(-1, 1, 1)

    def square(places: np.ndarray, side: int) -> tuple[Tensor, Tensor]:
        rows, columns = torch.from_numpy(places).to(device).unbind(-1)
        steps = torch.arange(side, device=device)
        return rows.view(-1, 1, 1) + steps.view(1, -1, 1), columns.view(-1, 1, 1) + steps.view(1, 1, -1)

    rows, columns = square(scene.block, BLOCK)
    vertical = torch.from_numpy(scene.vertical).to(device).view(-1, 1, 1) == 1
    dark = torch.where(vertical, columns, rows) // 2 % 2  # stripes are two pixels wide
    images[image, rows, columns] += (STRIPES * (1 - 2 * dark))[..., None]
    # Draw the pair last, over everything else.
    for mark in reversed(range(scene.marks.shape[1])):
        rows, columns = square(scene.marks[:, mark], MARK)
        images[image, rows, columns] = torch.from_numpy(scene.colors[:, mark]).to(device).view(-1, 1, 1, 3)
    return images.to(torch.uint8)


def accuracy_of_counting(distance: int, clutter: int, images: int = 40_000) -> float:
    """Return the accuracy on agreement of the better of two rules that add up marks and never see two together.

    Red counts 1 and blue -1, either everywhere or weighted by the probability that a mark at that place belongs to the
    pair. Each absolute value of the sum predicts the class with which it occurs more often.
    """
    scene = draw_scene(images, distance, clutter, seed=1, split=2)
    cells = scene.marks // CELL
    signs = np.where((scene.colors == np.array(COLORS[0])).all(axis=-1), 1.0, -1.0)
    index = cells[..., 0] * CELLS + cells[..., 1]
    pairs, marks = (np.bincount(part.ravel(), minlength=CELLS * CELLS) for part in (index[:, :2], index))
    accuracies = []
    for weights in (np.ones(CELLS * CELLS), pairs / marks):
        size = np.abs((weights[index] * signs).sum(axis=1))
        levels = np.digitize(size, np.quantile(size, np.linspace(0, 1, 33)[1:-1]))
        agree = np.array([[np.sum(scene.agree[levels == level] == answer) for answer in (0, 1)] for level in range(32)])
        accuracies.append(agree.max(axis=1).sum() / images)
    return float(max(accuracies))


def make_pairs(
    task: str, distance: int, clutter: int, train_images: int, test_images: int, seed: int, device: torch.device
) -> dict[str, np.ndarray]:
    """Return {train,test}_{images,labels} of the task, in the format of all sources.

    Raises:
        DataError: see `draw_scene`.
    """
    arrays: dict[str, np.ndarray] = {}
    for split, (name, count) in enumerate((("train", train_images), ("test", test_images))):
        scene = draw_scene(count, distance, clutter, seed, split)
        arrays[f"{name}_images"] = render(scene, device).cpu().numpy()
        arrays[f"{name}_labels"] = scene.agree if task == "agreement" else scene.vertical
    return arrays
