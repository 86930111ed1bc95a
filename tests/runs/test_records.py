"""The files of a run folder, and what is refused when they have been edited or damaged."""

import pytest

from attnconv.errors import RunFolderError
from attnconv.run import run

pytestmark = pytest.mark.slow

LINES = [
    ("metrics.jsonl", '{"epoch": 1}', "metrics.jsonl: epoch 1 has train/loss None, which is no number"),
    ("metrics.jsonl", '{"epoch": 1, "train/loss": NaN, "train/acc": 0.5}', "has train/loss nan, which is no number"),
    ("metrics.jsonl", '{"epoch": 1, "train/loss": 1, "train/acc": "x"}', "has train/acc 'x', which is no number"),
    ("metrics.jsonl", '{"epoch": "1", "train/loss": 1, "train/acc": 1}', "metrics.jsonl has the epoch '1'"),
    ("metrics.jsonl", "[1]", "metrics.jsonl has unexpected content"),
    ("timing.jsonl", '{"epoch": 1, "train_seconds": 5}', "timing.jsonl: epoch 1 has eval_seconds None"),
    ("timing.jsonl", '{"epoch": 1, "train_seconds": -5, "eval_seconds": 1}', "epoch 1 has train_seconds -5"),
    ("heads.jsonl", '{"epoch": null}', "heads.jsonl has the epoch None"),
    ("starts.jsonl", "{}", "starts.jsonl lacks 'commit'"),
]


def test_an_unfinished_run_with_edited_lines_is_refused_until_they_are_restored(tiny, interrupted):
    config = tiny("model=sa_quadratic", "epochs=2")
    folder = interrupted(config)
    for file, line, complaint in LINES:
        path = folder / file
        before = path.read_bytes()
        path.write_text(f"{line}\n")
        with pytest.raises(RunFolderError, match="is damaged") as refused:
            run(config)
        assert complaint in str(refused.value), line
        path.write_bytes(before)
    assert run(config)["status"] == "done"


def test_a_run_with_lost_starts_resumes_and_does_not_claim_a_clean_commit(tiny, interrupted):
    config = tiny("epochs=2")
    (interrupted(config) / "starts.jsonl").write_text("")
    result = run(config)
    assert (result["status"], result["dirty"] in (None, True)) == ("done", True)


def test_a_folder_in_place_of_a_file_is_a_one_line_error(tiny, interrupted):
    config = tiny("epochs=2")
    folder = interrupted(config)
    for name in ("predictions.npy", ".owner"):
        (folder / name).mkdir()
        with pytest.raises(RunFolderError, match="cannot be written: Is a directory"):
            run(config)
        (folder / name).rmdir()
