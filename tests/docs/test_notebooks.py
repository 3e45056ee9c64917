"""The notebooks of `examples` run from their first cell to their last, and what is saved in them is fit to be read."""

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

FOLDER = Path(__file__).parents[2] / "examples"
# In the order in which they are read: the first makes what the others use.
NAMES = ("vendor", "customer", "researcher")
SHORTER = {"--reference-steps 60 --steps 80": "--reference-steps 20 --steps 3"}
PLACES = re.compile(r"/home/|/root/|/Users/|/tmp/|/work/|[A-Z]:\\\\")


def notebook(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def outputs(name):
    return [output for cell in notebook(name).cells if cell.cell_type == "code" for output in cell.outputs]


def texts(output):
    if output.output_type == "stream":
        return [output.text]
    return [value for kind, value in output.get("data", {}).items() if kind.startswith("text/")]


def test_all_notebooks_are_tested():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_was_run_in_order_and_none_failed(name):
    found = notebook(name)
    nbformat.validate(found)
    ran = [cell.execution_count for cell in found.cells if cell.cell_type == "code"]
    assert ran == list(range(1, len(ran) + 1))
    assert not [output for output in outputs(name) if output.output_type == "error"]
    assert not [output for output in outputs(name) if output.get("name") == "stderr"]


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_in_it_and_no_places_of_a_machine(name):
    shown = [output.data for output in outputs(name) if output.output_type in ("display_data", "execute_result")]
    assert any("image/png" in data for data in shown)
    for text in (text for output in outputs(name) for text in texts(output)):
        # Pictures in HTML are base64, in which anything may stand.
        assert not PLACES.search(re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)), text
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 1_500_000


@pytest.mark.slow
def test_they_run(tmp_path):
    for name in NAMES:
        found = notebook(name)
        for cell in found.cells:
            for long, short in SHORTER.items():
                cell.source = cell.source.replace(long, short)
        client = nbclient.NotebookClient(
            found, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
        )
        client.execute()
        assert all(cell.execution_count for cell in found.cells if cell.cell_type == "code")


def test_the_test_trains_shorter_than_the_notebook():
    source = "\n".join(cell.source for cell in notebook("vendor").cells)
    assert all(source.count(long) == 1 for long in SHORTER)
