"""Data that is missing, misplaced or damaged; a dashboard that is turned off."""

import pytest


def cifar10(folder):
    """Make a folder that looks like CIFAR-10's, with empty files."""
    folder.mkdir(parents=True)
    for name in ("data_batch_1", "test_batch"):
        (folder / name).write_bytes(b"")


def test_data_one_folder_level_off_is_suggested(tmp_path, refused):
    cifar10(tmp_path / "home/c10/cifar-10-batches-py")
    source = "data=cifar10"
    found = refused(source, f"data.root={tmp_path}/home/c10/cifar-10-batches-py")
    assert f"but one level up; set data.root={tmp_path}/home/c10" in found
    assert f"one level down; set data.root={tmp_path}/home/c10" in refused(source, f"data.root={tmp_path}/home")


@pytest.mark.parametrize(
    ("source", "place", "complaint"),
    [
        ("arrays", "arrays/train_images.npy", "is a file; set data.root="),
        ("arrays", "nowhere", "does not exist; data.root must be"),
        ("arrays", ".", "one level down; set data.root="),
        ("arrays", "''", "data.root is empty"),
        ("cifar10", "c10/cifar-10-python.tar.gz", "is a file; set data.root="),
        ("cifar10", "partly", "is damaged: data_batch_1, data_batch_2"),
        ("cifar10", "renamed", "move them into cifar-10-batches-py/"),
        ("cifar10", "broken", "is damaged: its md5 is not"),
    ],
)
def test_missing_misplaced_and_damaged_data_have_different_errors(tmp_path, refused, source, place, complaint):
    cifar10(tmp_path / "renamed")
    cifar10(tmp_path / "partly/cifar-10-batches-py")
    for folder in ("c10", "broken"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "cifar-10-python.tar.gz").write_bytes(b"half")
    root = place if place == "''" else tmp_path / place
    assert complaint in refused(f"data={source}", f"data.root={root}")


def test_a_sweep_with_missing_data_is_refused_before_its_first_run(refused):
    assert refused("-m", "seed=0,1", "data.root=../array").startswith(
        "error: the folder ../array does not exist; data.root must be"
    )


@pytest.mark.parametrize(("variable", "value"), [("WANDB_MODE", "disabled"), ("WANDB_DISABLED", "true")])
def test_disabled_wandb_creates_no_folder(train, tmp_path, monkeypatch, variable, value):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv(variable, value)
    code, out, err = train("logger=wandb", "output=there")
    assert code == 0, err
    assert "W&B: disabled" in out
    assert "sync" not in out
    assert "warning" not in err
    assert not [path for path in (tmp_path / "here").rglob("*") if "wandb" in path.name]
