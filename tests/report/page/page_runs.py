"""Tiny finished runs of every kind of attention, and the page that shows them."""

import runpy
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.torch import save_file

from attnconv.analysis.heads import HeadWatcher, attention_mixers
from attnconv.analysis.probe import compact, probe
from attnconv.config import Config, compose
from attnconv.data.dataset import load_dataset
from attnconv.runs.folder import RunFolder
from attnconv.runs.load import build_untrained, load
from attnconv.runs.records import FORMAT
from conftest import REPOSITORY, TINY_SCALE, write_arrays

# Overrides of every kind of attention that the page computes, and of some that it does not.
KINDS = {
    "quadratic": ["model=sa_quadratic"],
    "non-isotropic": ["model=sa_quadratic_generalized"],
    "learned": ["model=sa_learned"],
    "sinusoidal": ["model=sa_sinusoidal"],
    "distance": ["model=sa_distance"],
    "radial": ["model=sa_distance", "model.mixer.encoding.kind=radial"],
    "relu": ["model=sa_quadratic", "model.mixer.normalizer=relu"],
    "sigmoid": ["model=sa_learned", "model.mixer.normalizer=sigmoid"],
    "content": ["model=sa_content"],
    "learned content": ["model=sa_learned_content"],
    "four terms": ["model=sa_sinusoidal_content"],
    "quadratic content": ["model=sa_quadratic_content"],
    "16 heads": ["model=sa_quadratic", "scale.heads=16"],
    "gated": ["model=sa_gated", "scale.heads=4"],
    "resnet": ["model=resnet10"],
}


PLACE = TemporaryDirectory(prefix="page")  # deleted when the tests end


@cache
def run_folders() -> dict[str, Path]:
    """The run folder of every kind, made once."""
    place = Path(PLACE.name)
    write_arrays(place / "arrays")
    fixed = [*TINY_SCALE, "scale.patch=2", "data=arrays", f"data.root={place}/arrays", f"output={place}/outputs"]
    fixed += ["logger=none", "precision=fp32", "epochs=2"]
    kinds = KINDS | {"pruned": ["model=sa_quadratic_pruned", f"model.start={place}/start.safetensors"]}
    configs = {kind: compose([*fixed, f"name={kind.replace(' ', '_')}", *more]) for kind, more in kinds.items()}
    write_start(configs["non-isotropic"], place / "start.safetensors")
    folders = {kind: write_run(config) for kind, config in configs.items()}
    found = probe(load(folders["quadratic"]), images=8, fit_images=20)
    (folders["quadratic"] / "probe.json").write_text(compact({"dirty": False, "images": 8, "fit_images": 20} | found))
    return folders


@torch.no_grad()
def write_start(config: Config, path: Path) -> None:
    """Write weights whose first layer has a head to prune, so that the layers differ in their number of heads."""
    model = build_untrained(config, load_dataset(config.data, torch.device("cpu")))
    attention_mixers(model)[0].encoding.spreads[1] = 1e-4 * torch.eye(2)
    save_file(model.state_dict(), path)


@torch.no_grad()
def write_run(config: Config) -> Path:
    """Write the folder of a finished run, with random instead of trained parameters, and return it."""
    data, folder, draws = load_dataset(config.data, torch.device("cpu")), RunFolder(config), torch.Generator()
    model = build_untrained(config, data).eval()
    watcher = HeadWatcher(model, "drawn")
    folder.data_hash = data.source_sha256
    folder.open()
    for epoch in range(config.epochs + 1):
        folder.append("heads.jsonl", watcher.record(epoch))
        if epoch:
            folder.append("metrics.jsonl", {"epoch": epoch, "train/acc": 0.25 * epoch, "test/acc": 0.5})
            folder.append("timing.jsonl", {"epoch": epoch, "seconds": 1.0})
        if epoch < config.epochs:
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=draws))
    maps = watcher.maps(data.test)
    if maps is not None:
        folder.write_array("attention_maps.npy", maps)
    folder.write_array("predictions.npy", np.zeros(len(data.test), np.int64))
    save_file(model.state_dict(), folder.weights)
    about = {"name": config.name, "model": config.model["name"], "recipe": config.recipe.name, "seed": config.seed}
    about |= {"scale": config.scale.name, "data": config.data.name, "fraction": config.data.fraction}
    about |= {"test_acc": 0.5, "dirty": False, "commit": "0" * 40, "versions": {}, "format": FORMAT}
    about |= {"epochs": config.epochs}
    about |= {"data_hash": data.source_sha256, "train_images": len(data.train), "parameters": 1000, "seconds": 2.0}
    folder.write_result({"status": "done", **about})
    folder.close()
    return folder.path


def make_page(*arguments: str | Path) -> int:
    """Run scripts/make_page.py with these arguments, and return its exit code."""
    before, sys.argv = sys.argv, ["make_page.py", *map(str, arguments)]
    try:
        runpy.run_path(str(REPOSITORY / "scripts" / "make_page.py"), run_name="__main__")
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        sys.argv = before
    return 0


def large_images() -> Path:
    """Write a run on images of 64 x 64 pixels, whose maps are larger than in the other runs, and return its folder."""
    place = Path(PLACE.name)
    write_arrays(place / "large", side=64)
    fixed = [*TINY_SCALE, "scale.patch=8", "data=arrays", f"data.root={place}/large", f"output={place}/outputs"]
    return write_run(compose([*fixed, "logger=none", "precision=fp32", "epochs=2", "name=large", "model=sa_quadratic"]))


@cache
def own_page() -> Path:
    """Make the page of all of these runs once, and return its path."""
    path = Path(PLACE.name) / "page.html"
    assert make_page(*run_folders().values(), "--out", path) == 0
    return path
