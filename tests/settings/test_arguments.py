"""Invalid arguments of train.py and the scripts: one-line errors that suggest a fix, and exit code 2."""

import io
import os
import pty
import runpy
import signal
import sys

import pytest

from attnconv.errors import UserError
from attnconv.settings.arguments import expand_home, train_arguments
from conftest import REPOSITORY


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Return a function that runs a script in this process and returns its exit code and the lines of stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(REPOSITORY / script), run_name="__main__")
        except SystemExit as ended:
            code = ended.code
        return code, capsys.readouterr().err.splitlines()

    yield run
    assert not list(tmp_path.glob("outputs*")), "nothing is written"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["name==x"], """name==x cannot be parsed; quote the value for the shell and for Hydra: 'name="=x"'"""),
        (["name=(x)"], """name=(x) cannot be parsed; quote the value for the shell and for Hydra: 'name="(x)"'"""),
        (["name=lr=0.1"], """name=lr=0.1 cannot be parsed; quote the value for the shell and for Hydra: 'name="lr="""),
        (["name=größe"], """for the shell and for Hydra: 'name="größe"'"""),
        (["name={"], """for the shell and for Hydra: 'name="{"'"""),
        (["name='open"], """for the shell and for Hydra: 'name="open"'"""),
        (["recipe.milestones=[5,10"], "recipe.milestones=[5,10 cannot be parsed: write recipe.milestones=[A,B] for a"),
        (["logger.tags=[a,b"], "logger.tags=[a,b cannot be parsed: write logger.tags=[A,B] for a list"),
        (["seed=1,"], "seed must be a whole number, not '1,'"),
        (["compile=true]"], "compile='true]' must be true or false: set compile=true or compile=false"),
        (
            ["name=a,b"],
            """name=a,b has several values: add -m for one run per value, or write""",
        ),
        (["seed=range(0,3)"], "seed=range(0,3) has several values"),
        (["-m", "seed=range(0,x)"], "seed=range(0,x): TypeError while evaluating"),
        (["-m", "seed=range(0,2,0)"], "seed=range(0,2,0): the step of a range must not be 0"),
        (["-m", "seed=interval(0,2)"], "an interval needs an optimizing sweeper; list the values, KEY=A,B,C, or write"),
        (["seed"], "the argument 'seed' has no value: write seed=VALUE"),
        (["größe=3"], "unknown setting 'größe'"),
        (["batch_size=10"], "unknown setting 'batch_size'; did you mean 'recipe.batch_size'?"),
        (["trainer=gpu"], "unknown setting 'trainer'; python train.py --help lists them"),
        (["model.mixer.kernel_size=3"], "the chosen model has no setting 'model.mixer.kernel_size'; other models have"),
        (
            ["model=local_attention", "model.mixer.kernel_size="],
            "model.mixer.kernel_size is empty: set model.mixer.kernel_size=VALUE",
        ),
        (["model=resnet18", "model.layers=2"], "has no setting 'model.layers'; other models have. If its class"),
        (["model=sa_quadratc"], "error: model=sa_quadratc does not exist; did you mean 'sa_quadratic'?"),
        (["model=timm"], "model.timm_name has no default: set model.timm_name=resnet18, or another"),
        (["hydra/launcher=ray"], "needs a plugin that is not installed: pip install hydra-ray-launcher"),
        (["hydra/sweeper=nevergrad"], "needs a plugin that is not installed: pip install hydra-nevergrad-sweeper"),
        (["hydra/sweeper=grid"], "error: hydra/sweeper=grid does not exist"),
        (["-m", "seed=0,1", "--cfg", "job"], "-m and --cfg cannot be combined"),
        (["--run", "--info", "all"], "--run and --info cannot be combined"),
        (["--cfg"], "expected one argument"),
        (["--cfg", "jobs"], "invalid choice: 'jobs'"),
        (["--info", "everything"], "invalid choice: 'everything'"),
        (["--resolve"], "--resolve needs --cfg"),
        (["-p", "model"], "--package needs --cfg"),
        (["--shell-completion"], "--shell-completion needs one of"),
        (["--experimental-rerun", "file"], "--experimental-rerun is not supported"),
        (["-cd", "absent"], "absent' not found"),
        (["-cp", "absent"], "Primary config directory not found"),
        (["--config-name", "absent"], "--config-name absent does not exist"),
        (["--bogus"], "unrecognized arguments: --bogus; python train.py --help shows how"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_invalid_train_arguments_are_one_line_errors(command, arguments, complaint):
    code, errors = command("train.py", "logger=none", "device=cpu", *arguments)
    assert code == 2
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert complaint in errors[0]


def test_an_unknown_package_is_a_one_line_error(command):
    assert command("train.py", "--cfg", "job", "-p", "absent") == (2, ["package 'absent' not found in config"])


@pytest.mark.parametrize("arguments", [["--version"], ["--hydra-help"], ["--help"], ["--cfg", "job", "--resolve"]])
def test_informational_flags_succeed(command, arguments):
    code, errors = command("train.py", *arguments)
    assert not code
    assert not errors


def test_flags_and_settings_may_be_in_any_order():
    assert train_arguments(["scale=mini", "-m", "seed=0,1"]) == ["scale=mini", "seed=0,1", "-m"]
    assert train_arguments(["-cd", "more", "a=1", "-c", "job", "b=2"]) == ["a=1", "b=2", "-cd", "more", "-c", "job"]
    with pytest.raises(UserError, match="unrecognized"):
        train_arguments(["-m", "--seeds", "seed=0"])


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("output=~/runs", "output=/home/ada/runs"),
        ("output=~", "output=/home/ada"),
        ('output="~/my runs"', 'output="/home/ada/my runs"'),
        ("data.root=~/a,~/b", "data.root=/home/ada/a,/home/ada/b"),
        ("+collected=~/runs", "+collected=/home/ada/runs"),
        ("output=runs~/old", "output=runs~/old"),
        ("model.start=~/run/weights.safetensors", "model.start=/home/ada/run/weights.safetensors"),
        ("name=~x", "name=~x"),
        ("~experiment", "~experiment"),
    ],
)
def test_home_folder_is_expanded_only_in_path_settings(monkeypatch, typed, read):
    monkeypatch.setenv("HOME", "/home/ada")
    assert expand_home(typed) == read


SCRIPTS = sorted(path.stem for path in (REPOSITORY / "scripts").glob("*.py"))
NUMERIC = [
    ("bench", "--rounds"),
    ("bench", "--images"),
    ("bench_attention", "--rounds"),
    ("conv_to_attention", "--alpha"),
    ("conv_to_attention", "--batch"),
    ("conv_to_attention", "--images"),
    ("predict", "--top"),
    ("study", "--at-once"),
    ("study", "--budget-hours"),
]


@pytest.mark.parametrize(
    ("script", "arguments", "complaint"),
    [
        ("status", ["absent"], "absent: no such folder"),
        ("status", ["."], ". contains no runs and no sweeps"),
        ("collect", ["absent"], "absent: no such folder"),
        ("collect", ["."], "no run folder below ."),
        ("collect", [], "required: outputs"),
        ("long_range", ["absent"], "absent: no such folder"),
        ("long_range", ["."], "no finished run of experiment=long_range below ."),
        ("long_range", [".", "--results", "absent"], "absent: no such folder"),
        ("make_tables", ["--nope"], "unrecognized arguments: --nope"),
        ("model_table", ["--only", "sa_quadratik"], "invalid choice: 'sa_quadratik'"),
        ("cpu10", ["resnet"], "invalid choice: 'resnet' (choose from sa_quadratic, conv3x3"),
        ("bench", ["--only", "steps"], "argument --only: invalid choice: 'steps'"),
        ("model_table", ["--results", "absent"], "absent: no such folder"),
        ("probe", ["absent"], "absent does not exist"),
        (
            "probe",
            ["sa_quadratic"],
            "sa_quadratic is a network in results/weights/, and this command needs a run folder",
        ),
        ("probe", [".", "--device", "tpu9"], "unknown device 'tpu9'"),
        ("conv_to_attention", [], "choose a network"),
        ("conv_to_attention", ["--model", "resnet18", "--images", "-1"], "'-1' is not a whole number"),
        ("conv_to_attention", ["--model", "resnet18", "--alpha", "nan"], "--alpha: 'nan' is not a number above 0"),
        ("conv_to_attention", ["--model", "resnet18", "--device", "gpu"], "unknown device 'gpu'"),
        ("conv_to_attention", ["--model", "resnet18", "scale=mimi"], "scale=mimi does not exist; did you mean 'mini'?"),
        ("conv_to_attention", ["batch_size=1", "--model", "resnet18"], "did you mean 'recipe.batch_size'?"),
        ("conv_to_attention", ["--model", "resnet18", "--json", "absent/file"], "the folder absent does not exist"),
        ("conv_to_attention", ["--model", "resnet81"], "timm has no model 'resnet81'; did you mean"),
        (
            "conv_to_attention",
            ["--sweep", "resnet18", "nope"],
            "timm has no model 'nope'; timm.list_models() lists",
        ),
        ("conv_to_attention", ["--model", "resnet18", "--sweep"], "--images and --json only: leave out --model"),
        ("conv_to_attention", ["--sweep", "--alpha", "46", "--batch", "1"], "only: leave out --alpha and --batch"),
        ("conv_to_attention", ["--model", "resnet18", "recipe.lr=1"], "recipe.lr=1 has no effect on a conversion"),
        ("conv_to_attention", ["--model", "resnet18", "model=resnet10"], "--model chooses the network"),
        ("conv_to_attention", ["--model", "resnet18", "device=cpu"], "device=cpu has no effect on a conversion"),
        ("conv_to_attention", ["--model", "resnet10", "data=digits", "--data", "a,b"], "not read from a folder"),
        ("conv_to_attention", ["--model", "resnet10", "data=arrays", "--data", "a,[b"], "the folder a,[b does not"),
        ("make_page", ["--data", "absent"], "--data needs RUN or --choose-images"),
        ("make_page", ["--trust", "net"], "--trust needs RUN"),
        ("make_page", ["run", "--choose-images"], "--choose-images is for the page of results/: leave out RUN"),
        ("make_page", ["--choose-images", "--data", "a,[b/file"], "a,[b/file"),
        ("make_figures", ["--trust", "net"], "--out, --data and --trust need --run"),
        ("make_figures", ["--list", "--only", "overview"], "--list shows all figures: leave out --only"),
        ("study", ["--list", "--budget-hours", "1"], "--list and --dry-run train nothing: leave out --budget-hours"),
        ("study", ["--dry-run", "--list"], "choose one of --list and --dry-run"),
        ("cpu10", ["conv3x3", "--minutes", "1"], "--minutes=1: conv3x3 trains a fixed number of epochs; set --epochs"),
        ("bench", ["--only", "layer", "--only", "step"], "argument --only: given twice"),
        ("bench", ["--only", "layer", "--images", "7"], "--images is for the part epoch: leave it out"),
        ("make_figures", ["--run", "run", "--results", "."], "--results is for the figures of the study"),
        ("make_page", ["run", "run"], "run is given twice"),
        ("probe", ["run", "other", "./other/"], "other is given twice"),
        ("conv_to_attention", ["--sweep", "resnet18", "--images", "1"], "set --images to 2 or more"),
        ("collect", [".", "--results", "./"], "--results . is also given as a folder of runs"),
        ("study", ["table1"], "table1 is an experiment: write --only table1"),
        ("verify", ["--repository", "."], ". has no folder results/"),
        ("bench", ["--rounds", "0"], "'0' is not a whole number from 1"),
        ("bench", ["--device", "gpu"], "unknown device 'gpu'"),
        ("bench_attention", ["--rounds", "none"], "'none' is not a whole number from 1"),
        ("bench_attention", ["--device", "gpu"], "unknown device 'gpu'"),
        ("verify", ["--nope"], "unrecognized arguments: --nope"),
        ("verify", ["--repository", "absent"], "absent: no such folder"),
        ("collect", [".", "--external", "a/b"], "'a/b' is not a name"),
        ("collect", [".", "--external", "a", "--weights", "*"], "--weights keeps weights of this project's own runs"),
        ("collect", [".", "--results", ""], "argument --results: the path is empty"),
        ("collect", [".", "--results=~/absent/results"], "no run folder below ."),
        ("status", ["~nobody_has_this_name"], "~nobody_has_this_name: no such folder"),
        ("probe", ["~nobody_has_this_name/run"], "~nobody_has_this_name/run does not exist"),
    ],
)
def test_invalid_script_arguments_are_one_line_errors(command, script, arguments, complaint):
    code, errors = command(f"scripts/{script}.py", *arguments)
    assert code == 2
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert complaint in errors[0]


@pytest.mark.parametrize("to", ["absent", "link"])
def test_links_that_lead_nowhere_are_named(command, tmp_path, to):
    (tmp_path / "link").symlink_to(to)
    for arguments in ((tmp_path, "--results", tmp_path / "link/results"), (tmp_path / "link",)):
        code, (error,) = command("scripts/collect.py", *map(str, arguments))
        assert code == 2
        assert error.endswith(f"{tmp_path}/link is a link that leads nowhere (to {to})")


@pytest.mark.parametrize(
    "value", ["nan", "inf", "-inf", "-1", "0", "1e999", "99999999999999999999999999999999", "", "x"]
)
@pytest.mark.parametrize(("script", "option"), NUMERIC)
def test_invalid_numeric_options_are_refused(command, script, option, value):
    code, errors = command(f"scripts/{script}.py", f"{option}={value}")
    assert code == 2
    (error,) = errors
    assert error.startswith(f"error: argument {option}: {value!r} is not a ")


@pytest.fixture
def stdout_to(monkeypatch):
    """Return a function that redirects stdout of this process to an open file."""

    def change(stream):
        monkeypatch.setattr(sys, "stdout", stream)

    return change


@pytest.mark.parametrize("script", [*(f"scripts/{name}.py" for name in SCRIPTS), "train.py"])
def test_scripts_exit_quietly_if_stdout_is_a_closed_pipe(command, stdout_to, script):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        stdout_to(gone)
        assert command(script, "--help") == (128 + signal.SIGPIPE, [])


def test_a_full_disk_behind_stdout_is_a_one_line_error(command, stdout_to):
    with open("/dev/full", "w") as full:
        stdout_to(full)
        assert command("scripts/status.py", "--help") == (2, ["error: output: No space left on device"])


def test_a_command_continues_without_its_terminal(command, stdout_to):
    terminal, place = pty.openpty()

    class ClosesSoon(io.TextIOWrapper):
        def isatty(self):
            yes = super().isatty()
            os.close(terminal)
            return yes

    with ClosesSoon(io.FileIO(place, "w")) as stream:
        stdout_to(stream)
        assert command("scripts/status.py", "--help") == (0, [])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(terminal, b"")


def test_letters_that_the_terminal_lacks_are_escaped(command, stdout_to, tmp_path):
    (tmp_path / "größe/frac1/seed0").mkdir(parents=True)
    shown = io.BytesIO()
    stdout_to(io.TextIOWrapper(shown, "ascii"))
    assert command("scripts/status.py", ".") == (0, [])
    assert rb"gr\xf6\xdfe/frac1/seed0" in shown.getvalue()


def test_hydra_prints_no_errors_itself(command, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    code, errors = command("train.py", "model=absent")
    assert (code, len(errors)) == (2, 1)


def test_a_script_reports_errors_without_stdout(command, stdout_to):
    stdout_to(None)
    assert command("scripts/status.py", "absent") == (2, ["error: argument outputs: absent: no such folder"])
