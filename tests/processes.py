"""Run Python scripts in separate processes that start with the large libraries already imported.

A helper process imports them once, and each script runs in a fork of it. As with `python SCRIPT`, a script has its own
working directory, environment, signals and exit code, and imports this package itself. This saves seconds of imports.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO

CONTEXT = multiprocessing.get_context("forkserver")
# The imports of a training run except this package, and pytest, which a child of `python -m pytest` imports again.
LIBRARIES = ["pytest", "hydra", "torch", "torch._dynamo", "timm", "safetensors.torch", "matplotlib.figure"]
CONTEXT.set_forkserver_preload(LIBRARIES)


class Script:
    """A running `python SCRIPT ARGUMENTS`, used like subprocess.Popen with text pipes."""

    def __init__(self, *command: object, cwd: Path, env: Mapping[str, str]) -> None:
        self.arguments = [str(word) for word in command]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        reader, out = CONTEXT.Pipe(duplex=False)
        err = Connection(os.dup(self._errors.fileno()), readable=False)
        self._process = CONTEXT.Process(target=_become, args=(self.arguments, str(cwd), dict(env), out, err))
        self._process.start()
        out.close()
        err.close()
        self.pid = self._process.pid
        self.stdout = os.fdopen(os.dup(reader.fileno()))
        reader.close()

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def finish(self) -> subprocess.CompletedProcess[str]:
        """Wait for the process to end, and return its exit code, the rest of its stdout, and all of its stderr."""
        with self.stdout, self._errors:
            rest = self.stdout.read()
            self._process.join()
            self._errors.seek(0)
            return subprocess.CompletedProcess(self.arguments, self._process.exitcode, rest, self._errors.read())


class Forked:
    """A running `python SCRIPT ARGUMENTS` that writes to an open file: what attnconv.sweeps.workers starts with Popen.

    Args:
        command: its first word, the interpreter, is ignored.
        env: the environment of the process.
        stdout: for both streams.
        options: ignored.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], stdout: IO[bytes], **options: object) -> None:
        out, err = (Connection(os.dup(stdout.fileno()), readable=False) for _ in range(2))
        self._process = CONTEXT.Process(target=_become, args=(list(command[1:]), os.getcwd(), dict(env), out, err))
        self._process.start()
        out.close()
        err.close()
        self.terminate = self._process.terminate

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int | None:
        self._process.join()
        return self._process.exitcode

    def send_signal(self, signum: int) -> None:
        os.kill(self._process.pid, signum)


def run_script(*command: object, cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `python SCRIPT ARGUMENTS` and wait for it to end."""
    return Script(*command, cwd=cwd, env=env).finish()


def _become(arguments: list[str], folder: str, environment: dict[str, str], out: Connection, err: Connection) -> None:
    """Set up this forked process like `python SCRIPT ARGUMENTS`, and run the script."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    out.close()
    err.close()
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False, buffering=1)
    sys.argv = arguments
    # timm imports wandb, whose folder for media the first fork to end would remove from all others.
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
        del sys.modules[name]
    places = [place for place in environment.get("PYTHONPATH", "").split(os.pathsep) if place]
    sys.path[:0] = [str(Path(folder, arguments[0]).parent), *places]
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()
