"""Run folders are found from any folder above them, and from the run folder itself."""

import errno
import os
from pathlib import Path

import pytest

from attnconv.runs.status import find_folders, shown_name

RUNS = [f"study/{model}/mini-modern/frac{fraction}/seed{seed}" for model in ("conv3x3", "sa_quadratic")
        for fraction in ("0.25", "1") for seed in (0, 1)]  # fmt: skip


@pytest.fixture
def outputs(tmp_path):
    for run in RUNS:
        (tmp_path / "outputs" / run).mkdir(parents=True)
    return tmp_path / "outputs"


def test_a_folder_above_runs_may_have_any_name(tmp_path):
    for above in ("fractions", "fraction_study/frac", "seeds/frac_of/seed"):
        folder = tmp_path / above / RUNS[0]
        folder.mkdir(parents=True)
        assert find_folders(tmp_path / above) == [folder]
    (tmp_path / "fractions/frac1/seed_notes").mkdir(parents=True)
    assert len(find_folders(tmp_path)) == 3


@pytest.mark.parametrize("place", ["", "study", "study/conv3x3", "study/conv3x3/mini-modern/frac1", RUNS[3]])
@pytest.mark.parametrize("inside", [False, True])
def test_runs_are_found_from_every_folder_above_them(outputs, monkeypatch, place, inside):
    given = outputs / place
    if inside:
        monkeypatch.chdir(given)
        given = Path(".")
    found = [folder.absolute().relative_to(outputs).as_posix() for folder in find_folders(given)]
    assert found == [run for run in RUNS if run.startswith(place)]


def test_unreadable_folders_are_named_and_others_are_read(outputs, monkeypatch, capsys):
    real = os.scandir

    def scandir(path):
        if Path(path) == outputs / "locked":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    (outputs / "locked").mkdir()
    before = find_folders(outputs)
    assert before
    monkeypatch.setattr(os, "scandir", scandir)
    assert find_folders(outputs) == before
    warning = f"warning: {outputs}/locked cannot be read (Permission denied), so runs in it are left out\n"
    assert capsys.readouterr().err == warning


def test_links_that_form_a_circle_are_followed_once(outputs):
    before = find_folders(outputs)
    for one, other in (("a", "b"), ("b", "a")):
        (outputs / one).mkdir()
        (outputs / one / "link").symlink_to(outputs / other)
    (outputs / "up").symlink_to(outputs)
    assert find_folders(outputs) == before


def test_a_run_folder_is_shown_by_its_own_path_and_others_by_the_path_below(outputs):
    assert shown_name(outputs / RUNS[0], outputs / RUNS[0]) == (outputs / RUNS[0]).as_posix()
    assert shown_name(outputs / RUNS[0], outputs) == RUNS[0]
