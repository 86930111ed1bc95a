"""A script in a forked process behaves like one started with `python SCRIPT`."""

import os
import signal

import pytest

from processes import Script, run_script

pytestmark = pytest.mark.slow

SHOWS = """
import atexit, os, sys
atexit.register(print, "at exit")
print(sys.argv, os.getcwd(), os.environ["SAID"], "HOME" in os.environ, sys.stdin.read() == "")
print([name for name in ("torch", "attnconv") if name in sys.modules])
print("trouble", file=sys.stderr)
import neighbor, elsewhere
sys.exit(neighbor.CODE)
"""


def test_a_script_has_its_own_arguments_folder_environment_modules_and_exit_code(tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "modules").mkdir()
    (tmp_path / "scripts/shows.py").write_text(SHOWS)
    (tmp_path / "scripts/neighbor.py").write_text("CODE = 7")
    (tmp_path / "modules/elsewhere.py").write_text("")
    environment = {"SAID": "something", "PYTHONPATH": str(tmp_path / "modules")}
    finished = run_script("scripts/shows.py", "a b", 3, cwd=tmp_path, env=environment)
    assert finished.stdout.splitlines() == [
        f"['scripts/shows.py', 'a b', '3'] {tmp_path} something False True",
        "['torch']",
        "at exit",
    ]
    assert (finished.returncode, finished.stderr) == (7, "trouble\n")


def test_an_exception_gives_a_traceback_and_exit_code_1(tmp_path):
    (tmp_path / "fails.py").write_text("raise ValueError('wrong')")
    finished = run_script("fails.py", cwd=tmp_path, env=os.environ)
    assert finished.returncode == 1
    assert finished.stderr.splitlines()[-1] == "ValueError: wrong"


def test_scripts_do_not_share_temporary_folders_of_libraries(tmp_path):
    (tmp_path / "media.py").write_text(
        "import timm, wandb.sdk.data_types._private as private\nopen(private.MEDIA_TMP.name + '/file', 'w').close()"
    )
    assert [run_script("media.py", cwd=tmp_path, env=os.environ).stderr for _ in range(2)] == ["", ""]


def test_signals_reach_the_script(tmp_path):
    handler = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))"
    (tmp_path / "waits.py").write_text(f"import signal, sys\n{handler}\nprint('ready', flush=True)\nsignal.pause()")
    for signum, code in ((signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)):
        script = Script("waits.py", cwd=tmp_path, env=os.environ)
        assert script.stdout.readline() == "ready\n"
        script.send_signal(signum)
        assert script.finish().returncode == code
