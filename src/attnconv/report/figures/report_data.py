"""The data of figures about the whole study: verdicts, images needed, and probes.

Each loader returns its figure's data, or None if runs are missing. This module does not import matplotlib.
"""

import numpy as np

from attnconv.files import reading
from attnconv.report.data_size import LEVELS
from attnconv.report.deciders import judged
from attnconv.report.evidence import OF_STUDY, Arm, Evidence
from attnconv.report.examined import is_corrected, layer_shares, read_calibration
from attnconv.report.figures.data import Kernel, Level, Need, Needs, Photo, Share, Shares, Verdict, Verdicts
from attnconv.report.figures.results import Results
from attnconv.report.figures.study_data import place
from attnconv.report.protocols import Protocol, protocols

KNOWN = {"nine hard heads": "nine hard heads", "even": "uniform attention", "random": "random attention"}  # calibration
SHOWN = 16  # of the images in results/test_images.npz: a dog's face


def verdicts(results: Results) -> Verdicts | None:
    """Return the verdicts on all claims.

    Raises:
        UserError: a file behind a claim is damaged.
    """
    if not (results.path / "claims.yaml").exists():
        return None
    found, errors = judged(results.path, results.runs)
    if errors:
        raise errors[0]
    return Verdicts([Verdict(one.claim["id"], one.claim["claim"], one.status, bool(one.caveat)) for one in found])


def needs(results: Results) -> list[Needs] | None:
    """Return the images that each model needs, divided by the control's, by accuracy and protocol."""
    found = []
    for protocol in protocols(results.runs):
        models = sorted((model for model in protocol.models[1:]), key=place)
        needed = [one for model in models for one in _needs_of(protocol, model)]
        if needed:
            found.append(Needs(f"{protocol.title}, scale={protocol.scale}, {protocol.precision}", needed))
    return found or None


def _needs_of(protocol: Protocol, model: str) -> list[Need]:
    ratios = [(level, protocol.ratio(model, level)) for level in LEVELS]
    return [Need(model, level, ratio.value, ratio.ends) for level, ratio in ratios if ratio is not None]


def convolution_shares(results: Results) -> Shares | None:
    """Return the probed runs of each attention in the study's experiments at scale=mini."""
    evidence, networks = Evidence(results.path, results.runs), []
    for model in sorted({run["model"] for run in results.runs}, key=lambda model: (place(model), model)):
        probes = evidence.probes(Arm((*OF_STUDY, "frozen_heads"), model))
        if not probes:
            continue
        corrected, images = all(is_corrected(probe) for _, probe in probes), probes[0][0]["train_images"]
        shares = {when: [layer_shares(probe)[when] for _, probe in probes] for when in ("initial", "trained")}
        networks.append(Share(f"{model}, {images:,} images, n={len(probes)}", model, corrected, **shares))
    if not networks:
        return None
    return Shares("How much of a layer's output is convolution (scale=mini)", networks, levels(results))


def levels(results: Results) -> list[Level]:
    """Return the same shares for attention of known kinds; empty if not measured."""
    found = read_calibration(results.path)
    if found is None:
        return []
    with reading(results.path / "theorem/calibration.json"):
        of_kind = {kind: [row["conv3"] for row in found["rows"] if row["attention"] == kind] for kind in KNOWN}
        return [Level(KNOWN[kind], min(values), max(values)) for kind, values in of_kind.items()]


def small_kernel(results: Results) -> Kernel:
    """Return a kernel with few enough channels to show all weights."""
    return _random_kernel(outputs=4, inputs=3)


def wide_kernel(results: Results) -> Kernel:
    """Return a kernel with enough channels that what it misses depends little on the draw."""
    return _random_kernel(outputs=16, inputs=16)


def photo(results: Results) -> Photo | None:
    """Return one of the page's test images, if there are enough and they are in color."""
    path = results.path / "test_images.npz"
    if not path.exists():
        return None
    with reading(path):
        pixels = np.load(path)["pixels"]
        return Photo(pixels[SHOWN]) if len(pixels) > SHOWN and pixels.shape[-1] == 3 else None


def _random_kernel(outputs: int, inputs: int) -> Kernel:
    # Whole numbers, so that the digest is the same on all machines.
    return Kernel(np.random.default_rng(0).integers(-9, 10, (outputs, inputs, 3, 3)).astype(float))
