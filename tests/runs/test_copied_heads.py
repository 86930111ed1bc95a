"""A run with heads copied from another run is identified by these heads, not by the path of the weights."""

import shutil

import pytest
import torch

from attnconv.errors import AlreadyDone, ConfigError, RunFolderError
from attnconv.files import FileError
from attnconv.models.build import build_model
from attnconv.report.collect import gather
from attnconv.run import run
from attnconv.runs.checkpoint import export_weights
from attnconv.runs.folder import run_folder_path
from attnconv.runs.load import build_untrained, load

ENCODING = "layers.1.mixer.encoding"


@pytest.fixture
def copied(tiny):
    """Return a function that composes a run that copies the heads of another run in the same outputs folder."""

    def build(outputs, *overrides):
        donor = run_folder_path(tiny("model=sa_quadratic", f"output={outputs}", "seed=1")) / "weights.safetensors"
        return tiny("model=sa_quadratic_copied", "epochs=1", f"output={outputs}", f"model.start={donor}", *overrides)

    return build


@pytest.fixture
def donate(tiny, copied):
    """Return a function that writes a run with weights for `copied` and returns its network."""

    def write(outputs, seed=1):
        torch.manual_seed(seed)
        model = build_model(tiny("model=sa_quadratic").model, (3, 8, 8), 4)
        weights = copied(outputs).model["start"]
        (path := run_folder_path(tiny("model=sa_quadratic", f"output={outputs}", "seed=1"))).mkdir(
            parents=True, exist_ok=True
        )
        assert weights == str(path / "weights.safetensors")
        export_weights(path / "weights.safetensors", model)
        return model

    return write


def test_outputs_may_move_before_and_after_a_run_with_copied_heads_finishes(tmp_path, copied, donate, interrupted):
    outputs, moved = tmp_path / "outputs", tmp_path / "moved"
    donate(outputs)
    interrupted(copied(outputs, "epochs=2"))
    outputs.rename(moved)
    assert run(copied(moved, "epochs=2"))["status"] == "done"
    shutil.copy(copied(moved).model["start"], tmp_path / "heads.pt")  # identified by its content, not its name
    for start in ((), (f"model.start={tmp_path}/heads.pt",)):
        with pytest.raises(AlreadyDone):
            run(copied(moved, "epochs=2", *start))


def test_different_heads_are_another_configuration(tmp_path, tiny, copied, donate):
    outputs = tmp_path / "outputs"
    donate(outputs)
    run(copied(outputs))
    donate(outputs, seed=2)
    start = copied(outputs).model["start"]
    with pytest.raises(RunFolderError, match=rf"\(model.start: {start} -> the same file with other heads\)"):
        run(copied(outputs))
    donate(tmp_path / "others", seed=3)
    other = copied(tmp_path / "others").model["start"]
    with pytest.raises(RunFolderError, match=rf"\(model.start: {start} -> {other}\)"):
        run(copied(outputs, f"model.start={other}"))
    random = tiny("model=sa_quadratic_copied", "epochs=1", "model.start=random")
    with pytest.raises(RunFolderError, match=rf"\(model.start: {start} -> random\)"):
        run(random)


def test_a_finished_run_counts_after_the_copied_weights_are_deleted(tmp_path, copied, donate, start_sweep):
    outputs = tmp_path / "outputs"
    donate(outputs)
    run(copied(outputs))
    shutil.rmtree(outputs / "default/sa_quadratic")
    assert start_sweep(copied(outputs)) == []
    with pytest.raises(AlreadyDone):
        run(copied(outputs))
    gather(outputs, tmp_path / "results")
    again = copied(tmp_path / "new", f"collected={tmp_path}/results")
    assert start_sweep(again) == [], "the run that it names is the same, below other outputs"
    with pytest.raises(RunFolderError, match="another configuration"):
        start_sweep(copied(outputs, f"model.start={tmp_path}/gone.pt"))


def test_a_trained_network_loads_its_heads_without_the_donor(tmp_path, copied, donate):
    donor = donate(tmp_path / "outputs").state_dict()
    run(copied(tmp_path / "outputs"))
    shutil.rmtree(tmp_path / "outputs/default/sa_quadratic")
    trained = load(run_folder_path(copied(tmp_path / "outputs")))
    for network in (trained.model, build_untrained(trained.config, trained.data)):
        assert torch.equal(network.state_dict()[f"{ENCODING}.centers"], donor[f"{ENCODING}.centers"])


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "start={} is not a file"),
        (b"", "{} is empty (0 bytes)"),
        (b"torn", "{} is text, beginning 'torn'; supported formats are"),
        (b"\x80\x04x", "{} is a pickle, which can run any code"),
    ],
)
def test_a_missing_or_invalid_weights_file_is_refused(tmp_path, copied, content, complaint):
    path = tmp_path / "heads.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((FileError, ConfigError)) as refused:
        run(copied(tmp_path / "outputs", f"model.start={path}"))
    assert complaint.format(path) in str(refused.value)
    assert not (tmp_path / "outputs").exists()
