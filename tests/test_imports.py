"""Slow imports happen only when they are needed."""

import json
import subprocess

import pytest

from attnconv.config import compose
from attnconv.runs.folder import RunFolder
from conftest import PYTHON, REPOSITORY, TINY_SCALE

pytestmark = pytest.mark.slow

LOADED = "import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"


def loaded_after(code: str) -> set[str]:
    """Return the top-level modules of a fresh interpreter that ran `code`."""
    command = [PYTHON, "-c", f"{code}\n{LOADED}"]
    shown = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    return set(json.loads(shown.splitlines()[-1]))


def test_training_does_not_import_optional_libraries():
    loaded = loaded_after("import attnconv.run")
    assert "torch" in loaded
    assert not loaded & {"timm", "torchvision", "pandas", "matplotlib", "sklearn", "scipy", "wandb", "trackio"}


def test_commands_that_only_look_import_no_heavy_libraries():
    commands = [[str(path), "--help"] for path in sorted((REPOSITORY / "scripts").glob("*.py"))]
    commands += [["scripts/make_figures.py", "--list"]]
    commands += [["scripts/study.py", "--list", "--precision", "fp32", "--only", "table1", "name=listed"]]
    run = (
        f"import runpy, sys\nfor command in {commands!r}:\n    sys.argv[:] = command\n"
        "    try: runpy.run_path(command[0], run_name='__main__')\n"
        "    except SystemExit as ended: assert not ended.code, command\n"
    )
    assert not loaded_after(run) & {"torch", "pandas", "matplotlib", "timm", "torchvision", "wandb", "trackio"}


def test_status_script_imports_no_heavy_libraries(tmp_path):
    (tmp_path / "name/model/mini-modern/frac1/seed0").mkdir(parents=True)
    run = f"import runpy, sys; sys.argv[1:] = [{str(tmp_path)!r}]; "
    loaded = loaded_after(f"{run} runpy.run_path('scripts/status.py', run_name='__main__')")
    assert not loaded & {"torch", "numpy", "pandas", "matplotlib", "timm", "hydra"}


def test_finished_runs_are_refused_or_skipped_without_importing_torch(arrays, tmp_path):
    overrides = [*TINY_SCALE, "epochs=1", "data=arrays", f"data.root={arrays}", f"output={tmp_path}/outputs"]
    config = compose(overrides)
    folder = RunFolder(config)
    folder.data_hash = "of the arrays"  # the arrays are not read again: their file times are unchanged
    folder.open()
    for file in ("metrics.jsonl", "timing.jsonl"):
        folder.append(file, {"epoch": 1, "train/acc": 0.5, "test/acc": 0.5})
    about = {"name": config.name, "model": config.model["name"], "fraction": 1.0, "seed": 0, "versions": {}}
    about |= {part: getattr(config, part).name for part in ("recipe", "scale", "data")}
    folder.write_result(about | {"status": "done", "test_acc": 0.5, "dirty": False})
    folder.close()
    run = (
        "import runpy, sys\ncodes = []\n"
        f"for mode in ([], ['-m']):\n    sys.argv[:] = ['train.py', *mode, *{overrides!r}]\n"
        "    try: codes.append(runpy.run_path('train.py', run_name='__main__') and 0)\n"
        "    except SystemExit as ended: codes.append(ended.code)\n"
        "assert codes == [2, 0], codes"
    )
    assert not loaded_after(run) & {"torch", "timm", "pandas", "matplotlib", "wandb"}
