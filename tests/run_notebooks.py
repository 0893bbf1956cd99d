"""Run notebooks as a user would, from top to bottom in an empty folder; as a program, renew what is committed.

python tests/run_notebooks.py [NAME ...]      all of notebooks/, or those that are named, such as `distil`
"""

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
DIGEST = "source_sha256"  # of the cells that the committed outputs were made by


def run_notebook(path, folder):
    """The notebook `path` with the outputs of its cells, run one after the other in `folder`, which gets its files.

    The first cell that fails ends it with nbclient's CellExecutionError.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    options = {"timeout": 1200, "kernel_name": "python3", "record_timing": False, "coalesce_streams": True}
    client = NotebookClient(notebook, resources={"metadata": {"path": str(folder)}}, **options)
    client.execute(env={**os.environ, "PYTHONPATH": str(ROOT)})
    kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    digest = source_digest(notebook)
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": kernelspec, "language_info": {"name": "python"}, DIGEST: digest}
    )
    return notebook


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def source_digest(notebook):
    sources = [cell.source for cell in code_cells(notebook)]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def main(names):
    for path in NOTEBOOKS:
        if not names or path.stem in names:
            with tempfile.TemporaryDirectory() as folder:
                nbformat.write(run_notebook(path, folder), path)
            print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
