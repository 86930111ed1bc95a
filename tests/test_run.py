"""Training runs are reproducible, resumable and recorded, and they learn."""

import itertools
import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import attnconv.training.trainer as trainer_module
from attnconv.config import CONFIGS
from attnconv.errors import AlreadyDone, ConfigError, DataError, RunFolderError
from attnconv.run import run
from attnconv.runs import dashboards
from attnconv.runs.folder import run_folder_path
from attnconv.training.setup import prepare


def read(config, file):
    return (run_folder_path(config) / file).read_text()


def content(config, file):
    return (run_folder_path(config) / file).read_bytes()


def weights(config):
    return load_file(run_folder_path(config) / "weights.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("recipe", ["paper", "modern"])
def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(tiny, recipe):
    configs = [
        tiny("model=sa_quadratic", f"recipe={recipe}", f"name={name}", f"seed={seed}")
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    for config in configs:
        run(config)
    a, b, c = (read(config, "metrics.jsonl") for config in configs)
    assert a == b
    assert a != c
    for file in ("heads.jsonl", "predictions.npy", "attention_maps.npy"):
        assert content(configs[0], file) == content(configs[1], file)
    assert same(weights(configs[0]), weights(configs[1]))


@pytest.mark.parametrize("model", ["sa_quadratic", "resnet10"])
def test_the_settings_of_the_caller_change_nothing(tiny, model):
    settings = {
        "plain": nullcontext,
        "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        "inference": torch.inference_mode,
        "meta": lambda: torch.device("meta"),
    }
    found = {}
    for name, context in settings.items():
        config = tiny(f"model={model}", "epochs=1", f"name={name}", "precision=fp32")
        with context():
            run(config)
        found[name] = read(config, "metrics.jsonl"), content(config, "weights.safetensors")
    assert all(files == found["plain"] for files in found.values())
    torch.set_default_dtype(torch.float64)
    try:
        run(tiny(f"model={model}", "epochs=1", "name=double", "precision=fp32"))
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.draws
def test_run_folder_contents(tiny):
    config = tiny("model=sa_quadratic")
    result = run(config)
    folder = run_folder_path(config)
    assert folder.relative_to(config.output) == Path("default/sa_quadratic/mini-modern/frac1/seed0")
    assert json.loads(read(config, "result.json")) == result
    assert result["status"] == "done"
    assert result["parameters"] == sum(tensor.numel() for tensor in weights(config).values())
    for key in ("model", "recipe", "scale", "seed", "fraction", "epochs", "test_acc", "seconds", "images_per_second",
                "commit", "dirty", "device", "versions", "data_hash", "precision"):  # fmt: skip
        assert key in result, key
    metrics = [json.loads(line) for line in read(config, "metrics.jsonl").splitlines()]
    assert [record["epoch"] for record in metrics] == [1, 2]
    assert metrics[-1]["test/acc"] == result["test_acc"]
    heads = [json.loads(line) for line in read(config, "heads.jsonl").splitlines()]
    assert [record["epoch"] for record in heads] == [0, 1, 2]
    assert [set(record) for record in heads] == [{"epoch", "centers", "spreads"}] * 3
    assert np.shape(heads[0]["centers"]) == (2, 3, 2)
    assert np.shape(heads[0]["spreads"]) == (2, 3)
    assert heads[0]["centers"] != heads[2]["centers"], "centers are trained"
    trained = weights(config)
    for layer, centers in enumerate(heads[2]["centers"]):
        (own,) = [t for name, t in trained.items() if f".{layer}." in name and name.endswith("encoding.centers")]
        np.testing.assert_array_equal(centers, np.round(own.numpy().astype(np.float64), 4))
    assert (folder / "heads.png").stat().st_size > 10_000


def test_data_equal_fixes_the_number_of_steps_or_epochs(tiny):
    """40 images in batches of 16 are 3 steps per epoch; a fifth of them is 1 step, or 3 with data.equal=steps."""
    steps = {}
    for fraction, equal in ((1, "epochs"), (1, "steps"), (0.2, "epochs"), (0.2, "steps")):
        config = tiny(f"data.fraction={fraction}", f"data.equal={equal}", f"name={equal}")
        result = run(config)
        rates = [json.loads(line)["train/lr"] for line in read(config, "metrics.jsonl").splitlines()]
        steps[fraction, equal] = result["steps"], result["train_images"], rates
    assert steps[1, "epochs"] == steps[1, "steps"]
    assert steps[1, "epochs"][:2] == (6, 40)
    assert steps[0.2, "epochs"][:2] == (2, 8)
    assert steps[0.2, "steps"] == (6, 8, steps[1, "epochs"][2]), "and the same learning rates"


def test_a_finished_run_of_another_configuration_is_not_reported_as_done(tiny):
    run(tiny())
    with pytest.raises(RunFolderError, match=r"finished run of another configuration \(epochs: 2 -> 3\)") as error:
        run(tiny("epochs=3"))
    assert not isinstance(error.value, AlreadyDone), "a sweep would take it for one of its cells"


def test_a_finished_run_is_not_overwritten(tiny):
    run(tiny())
    before = read(tiny(), "result.json")
    with pytest.raises(RunFolderError, match="is already finished"):
        run(tiny())
    assert read(tiny(), "result.json") == before
    path = run_folder_path(tiny()) / "result.json"
    for wrong, complaint in (({"test_acc": "0.9"}, "has test_acc '0.9'"), ({"test_acc": None}, "says test/acc None")):
        path.write_text(json.dumps(json.loads(before) | wrong))
        with pytest.raises(RunFolderError, match=f"is damaged: result.json {complaint}.*; delete the folder"):
            run(tiny())


@pytest.mark.draws
@pytest.mark.parametrize("recipe", ["paper", "modern"])
def test_an_interrupted_run_resumes_to_the_same_bytes(tiny, monkeypatch, recipe):
    overrides = ("model=sa_quadratic", f"recipe={recipe}", "epochs=3")
    undisturbed, disturbed = tiny(*overrides, "name=undisturbed"), tiny(*overrides, "name=disturbed")
    run(undisturbed)

    def interrupted_at(call, real):
        calls = itertools.count(1)

        def function(*arguments, **options):
            if next(calls) == call:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        return function

    # Before any checkpoint, between the metrics of an epoch and its checkpoint, and after the last checkpoint.
    for name, call in (("evaluate", 1), ("save_checkpoint", 2), ("export_weights", 1)):
        with monkeypatch.context() as patch:
            patch.setattr(trainer_module, name, interrupted_at(call, getattr(trainer_module, name)))
            with pytest.raises(KeyboardInterrupt):
                run(disturbed)
        assert json.loads(read(disturbed, "result.json"))["status"] == "interrupted"
    assert run(disturbed)["test_acc"] == json.loads(read(undisturbed, "result.json"))["test_acc"]

    for file in ("metrics.jsonl", "heads.jsonl", "predictions.npy", "attention_maps.npy", "heads.png"):
        assert content(disturbed, file) == content(undisturbed, file)
    assert same(weights(disturbed), weights(undisturbed))


def test_an_unfinished_run_of_another_configuration_names_the_changed_settings(tiny, monkeypatch):
    monkeypatch.setattr(trainer_module, "evaluate", lambda *arguments, **options: 1 / 0)
    with pytest.raises(ConfigError, match="model=conv3x3 failed in evaluation: division by zero") as failed:
        run(tiny("checkpoint_steps=1"))
    assert json.loads(read(tiny(), "result.json"))["reason"] == f"ConfigError: {failed.value}"
    with pytest.raises(RunFolderError) as refused:
        run(tiny("recipe.lr=0.5"))
    assert str(refused.value) == (
        f"{run_folder_path(tiny())} holds an unfinished run of another configuration (recipe.lr: 0.015 -> 0.5); "
        "choose another name=, such as name='NAME_${recipe.lr}', or delete the folder"
    )


@pytest.mark.parametrize(
    ("override", "error", "complaint"),
    [
        ("scale.patch=3", ConfigError, "8x8 pixels do not divide into patches of 3x3"),
        ("device=cuda:7", ConfigError, "this machine has . CUDA devices"),
        ("device=cdua", ConfigError, "unknown device 'cdua'; use auto"),
        ("data.fraction=0.01", DataError, "less than one image"),
        (
            "data.root=/nowhere",
            DataError,
            "the folder /nowhere does not exist; data.root must be the folder of train_images.npy",
        ),
        ("data.mean=[0.5,0.5]", DataError, r"^data\.mean needs 3 values, one per channel, not \[0.5, 0.5\]$"),
        ("data.std=[0.5,0.5]", DataError, r"^data\.std needs 3 values"),
        ("model=vit scale.width=20", ConfigError, "width=20 is not divisible by heads=8"),
        ("model=local_attention scale.patch=1 model.mixer.kernel_size=4", ConfigError, "odd and at least 1, not 4"),
        ("model=local_attention scale.patch=1 model.mixer.kernel_size=9", ConfigError, "larger than the map of 8x8"),
        ("model=local_attention scale.patch=1 scale.width=20", ConfigError, "width=20 is not divisible by heads=8"),
        (
            "model=global_attention model.mixer.pattern.count=5",
            ConfigError,
            r"in 1\.\.4, the positions of the map, not 5",
        ),
        ("model=sa_quadratic model.mixer.normalizer=softmix", ConfigError, "softmax, relu, sigmoid, not 'softmix'"),
        ("model=involution scale.width=16 scale.patch=2", ConfigError, "kernel_size=7 is larger than the map of 4x4"),
        ("model=timm model.timm_name=resnet99", ConfigError, "timm has no model 'resnet99'; did you mean 'resnet50'"),
        ("model=timm model.timm_name=inception_v4", ConfigError, "inception_v4 cannot take images of 8x8 pixels"),
        ("match=flops match_model=conv4x4", ConfigError, "match_model=conv4x4 does not exist; did you mean 'conv3x3'"),
        ("data=pairs data.distance=6", DataError, "must be a multiple of 4"),
        ("model=sa_quadratic model.mixer.impl=seperable", ConfigError, "must be one of auto, dense, separable"),
    ],
)
def test_invalid_settings_raise_and_write_nothing(tiny, override, error, complaint):
    config = tiny(*override.split())
    with pytest.raises(error, match=complaint):
        run(config)
    assert not Path(config.output).exists()


def test_an_unwritable_output_folder_is_refused(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "nowhere").symlink_to("absent")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("file", "nowhere", "loop"):
        with pytest.raises(RunFolderError, match=f"{name} is not a writable folder"):
            run(tiny(f"output={tmp_path}/{name}/deep"))


@pytest.mark.parametrize("model", ["sa_quadratic", "sa_learned", "conv3x3", "resnet18"])
def test_models_overfit_one_batch(tiny, model):
    config = tiny(f"model={model}", "recipe.optimizer=adamw", "recipe.lr=0.01", "scale.width=16", "scale.cnn_width=8")
    this = prepare(config)
    images, labels = next(this.data.train.batches(16))
    labels = labels.roll(1)  # only memorization can predict these
    for _ in range(150):
        loss = F.cross_entropy(this.model(images), labels)
        this.optimizer.zero_grad()
        loss.backward()
        this.optimizer.step()
        if loss.item() < 0.05:
            return
    pytest.fail(f"the loss is still {loss.item()}")


# Two models need the weights of another run; tests/models/test_frozen.py and test_pruned.py cover them.
MODELS = sorted({path.stem for path in CONFIGS.glob("model/*.yaml")} - {"sa_quadratic_copied", "sa_quadratic_pruned"})


@pytest.mark.parametrize("model", MODELS)
def test_every_model_trains_and_records_its_heads(tiny, model):
    extra = ["model.timm_name=test_resnet"] if model == "timm" else []
    # VGG's pooling layers need 32 x 32 pixels. From 8 x 8 pixels, timm's ResNet makes 1 x 1 maps, and the gradients of
    # bf16 channels-last convolutions on these are not finite (torch 2.15 on a CPU).
    if model in ("vgg11_bn", "timm"):
        extra += ["data=pairs", "data.train_images=16", "data.test_images=8"]
    config = tiny(
        f"model={model}",
        "epochs=1",
        "scale.patch=1",
        f"scale.heads={9 if model == 'sa_quadratic_shifts' else 4}",  # one for each shift of a square kernel
        "scale.width=16",
        "recipe.attention_dropout=0.1",
        *extra,
    )
    result = run(config)
    assert result["status"] == "done"
    assert 0 < result["flops_paper"] <= result["flops_full"]
    maps, path = run_folder_path(config) / "attention_maps.npy", run_folder_path(config) / "heads.jsonl"
    mixer = str(config.model.get("mixer", {}).get("_target_", ""))
    assert maps.exists() == maps.with_name("heads.png").exists() == ("Attention" in mixer)
    if maps.exists():
        found = np.load(maps)
        assert found.shape == (2, config.model["heads"], 8, 8)
        assert found.dtype == np.float16
        np.testing.assert_allclose(found.sum(axis=(2, 3), dtype=np.float64), 1, atol=2e-3)
    assert path.exists() == (model == "sa_gated" or "quadratic" in model), "a line per epoch for Gaussian heads alone"
    if path.exists():
        heads = [json.loads(line) for line in path.read_text().splitlines()]
        assert np.shape(heads[1]["centers"]) == (2, config.model["heads"], 2)
        own = (2, 2) if model == "sa_quadratic_generalized" else ()
        assert np.shape(heads[1]["spreads"]) == (2, config.model["heads"], *own)


def test_a_matched_width_is_printed_and_recorded(tiny, capsys):
    config = tiny("model=conv3x3", "match=parameters", "match_model=sa_learned_content", "epochs=1")
    result = run(config)
    match = result["match"]
    assert match["model"] == "sa_learned_content"
    assert match["achieved"] == result["parameters"]
    assert abs(match["difference"]) <= 0.02
    assert f"matched to the {match['target']:,} parameters of sa_learned_content" in capsys.readouterr().out
    assert run_folder_path(config).joinpath("config.yaml").read_text().count("width: 8") == 2, "as it was asked for"


def test_a_failing_dashboard_only_warns(tiny, monkeypatch, capsys):
    finished = []

    class Broken:
        def __init__(self, config, folder, history):
            pass

        def log(self, epoch, metrics):
            raise OSError("service unavailable")

        def finish(self, status):
            finished.append(status)

    monkeypatch.setitem(dashboards.ADAPTERS, "wandb", Broken)
    assert run(tiny("logger=wandb"))["status"] == "done"
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert finished == ["failed"], "a sweep's next run must not write into this one"
    assert warnings == ["warning: wandb is off for this run (service unavailable); everything is in the run folder"]


def test_a_missing_dashboard_library_only_warns(tiny, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    assert run(tiny("logger=wandb", "epochs=1"))["status"] == "done"
    assert "warning: wandb is off for this run" in capsys.readouterr().err


# All batches of the compiled run have one size: each further size would be compiled again.
COMPILED = ["compile=true", "scale.layers=1", "recipe.batch_size=20", "epochs=12"]


@pytest.mark.parametrize("overrides", [["precision=fp32"], ["precision=bf16"], COMPILED])
def test_a_network_learns_in_every_precision_and_compiled(tiny, overrides):
    if "compile=true" in overrides and not (shutil.which("c++") or shutil.which("g++")):
        pytest.skip("torch.compile needs a C++ compiler")
    assert run(tiny("model=sa_quadratic", "epochs=8", *overrides))["test_acc"] > 0.5  # four classes of colored noise


@pytest.mark.gpu
def test_a_network_learns_on_a_gpu(tiny):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    config = tiny("epochs=8")
    config.device = "cuda"
    assert run(config)["test_acc"] > 0.5
