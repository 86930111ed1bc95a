"""The commands of README and docs/, run as written in a copy of the repository with noise in place of CIFAR-10.

The only changes, so that a test takes seconds: training commands and `make quickstart` get `epochs=1` and
`scale.layers=1`, and training commands at paper scale use ten images.
"""

import os
import re
import shlex
import shutil
import subprocess

import pytest

from conftest import REPOSITORY, write_arrays
from processes import run_script

pytestmark = pytest.mark.slow

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
BLOCKS = [block for page in PAGES for block in re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL)]
COMMANDS = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
INSPECTING = ("--help", "--cfg")
SHORT = "epochs=1 scale.layers=1"


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A fresh copy of the files that git tracks, with this environment as its .venv."""
    target = tmp_path_factory.mktemp("readme") / "clone"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for name in tracked.stdout.split("\0")[:-1]:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / name, target / name)
    for name in ("requirements.txt", "pyproject.toml"):
        # They must be older than the shared .venv, or make would install the copy into it.
        os.utime(target / name, (0, 0))
    (target / ".venv").symlink_to(REPOSITORY / ".venv")
    write_arrays(target / "data/cifar10", train=100, test=10, side=32, classes=10)
    return target


def test_the_documentation_contains_commands():
    assert len(COMMANDS) >= 8
    assert "make quickstart" in COMMANDS


def perform(clone, command):
    """Run a command with as little training as possible, and return the finished process."""
    words = shlex.split(command)
    if "train.py" in words and not set(words) & set(INSPECTING):
        command += f" {SHORT}" + ("" if "scale=" in command or "experiment=" in command else " data.fraction=0.1")
    if command == "make quickstart":
        command += f" ARGS='{SHORT} data.fraction=0.1'"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "PYTHONPATH": f"{clone}/src"}
    environment["PATH"] = f"{clone}/.venv/bin:{environment['PATH']}"
    if words[0] == "python" and not set(command) & set("|&;<>*~`"):
        finished = run_script(*shlex.split(command)[1:], cwd=clone, env=environment)
    else:
        finished = subprocess.run(["bash", "-ec", command], cwd=clone, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished


@pytest.fixture(scope="module")
def study(clone):
    """The command of the sweep that other commands read, and its finished process."""
    (command,) = (line for line in COMMANDS if "name=study" in line and "launcher" not in line)
    return command, perform(clone, command)


@pytest.mark.parametrize("command", COMMANDS)
def test_documented_command_runs(clone, request, command):
    if command.startswith(("make ", "source ")) and not (REPOSITORY / ".venv/.runtime").exists():
        pytest.skip("no .venv made by make in the repository: make setup-dev makes it")
    if re.search(r"\boutputs\b|name=study\b", command):
        swept, finished = request.getfixturevalue("study")
        finished = finished if command == swept else perform(clone, command)
    else:
        finished = perform(clone, command)
    if command == "make quickstart":
        assert "test accuracy" in finished.stdout
        folder, picture = re.search(r"run folder: (\S+); heads: (\S+)", finished.stdout).groups()
        assert (clone / folder / "result.json").is_file()
        assert (clone / picture).is_file()
