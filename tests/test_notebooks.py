"""The notebooks run from top to bottom as committed; theorem.ipynb's outputs match its text."""

import json
import os
import re

import pytest

from conftest import REPOSITORY

pytestmark = pytest.mark.slow

nbformat = pytest.importorskip("nbformat", reason="needs nbformat and nbclient: make setup-dev")
nbclient = pytest.importorskip("nbclient", reason="needs nbformat and nbclient: make setup-dev")

jupyter_client = pytest.importorskip("jupyter_client", reason="needs nbformat and nbclient: make setup-dev")

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))

# Pictures are not cropped, because every one would be drawn twice.
BEFORE = "%reset -f\n%matplotlib inline\n%config InlineBackend.print_figure_kwargs = {'bbox_inches': None}"


def outputs(notebook):
    return [(cell, output) for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


@pytest.fixture(scope="module")
def execute(tmp_path_factory):
    """Return a function that runs a notebook from a folder outside the repository and returns it with its outputs.

    One kernel runs all notebooks, so that it imports torch once; its namespace is cleared before each of them.
    """
    manager, folder = jupyter_client.KernelManager(kernel_name="python3"), tmp_path_factory.mktemp("notebook")
    manager.start_kernel(cwd=str(folder), env=os.environ | {"PYTHONPATH": str(REPOSITORY / "src")})

    def run(name):
        notebook = nbformat.read(REPOSITORY / f"notebooks/{name}.ipynb", as_version=4)
        notebook.cells.insert(0, nbformat.v4.new_code_cell(BEFORE))
        nbclient.NotebookClient(notebook, timeout=None, km=manager).execute()
        del notebook.cells[0]
        return notebook

    yield run
    manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def executed(execute):
    """The theorem notebook with the outputs of a new run."""
    return execute("theorem")


def printed(notebook, beginning):
    """Return the text output of the one cell that starts with `beginning`."""
    (cell,) = [cell for cell in notebook.cells if cell.source.startswith(beginning)]
    return "".join(output.get("text") or output["data"]["text/plain"] for output in cell.outputs)


def test_theorem_notebook_outputs_match_its_text(executed):
    assert float(printed(executed, "convolution = nn.Conv2d").split()[-1]) < 1e-10
    facts = dict(line.split() for line in printed(executed, "compared = exchange").splitlines()[1:])
    assert int(facts["predictions_changed"]) == 0
    assert float(facts["attention_acc"]) == float(facts["convolution_acc"]) > 0.9
    assert "is not a tap of a convolution" in printed(executed, "attentive = load(run_folder_path(config))\nlayer =")
    assert "made hard, it is Conv2d(16, 16" in printed(executed, "with torch.no_grad()")
    pictures = [output for _, output in outputs(executed) if "image/png" in output.get("data", {})]
    assert len(pictures) == 8


@pytest.mark.parametrize(("name", "pictures"), [("tour", 3), ("data_size", 1)])
def test_other_notebooks_run_and_use_only_the_public_api(execute, name, pictures):
    notebook = execute(name)
    assert len([output for _, output in outputs(notebook) if "image/png" in output.get("data", {})]) == pictures
    sources = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert not re.findall(r"(?:from|import) attnconv\.", sources)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebooks_ran_in_order_and_define_no_functions(path):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for _, output in outputs(notebook) if output.output_type == "error"]
    lines = [line for cell in cells for line in cell.source.splitlines()]
    assert not [line for line in lines if line.lstrip().startswith(("def ", "class "))]
    # Outputs must not show the machine's paths.
    assert not re.findall(r"/(?:home|Users|root|work|tmp)/", json.dumps([output for _, output in outputs(notebook)]))
