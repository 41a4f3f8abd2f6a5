"""Prose out of docstrings: running text stays, what numpydoc and reST put around it goes."""

from __future__ import annotations

import json
import zipfile

from stages.fetch.docstrings import docstrings, prose

RUNNING = "This function counts the paths between two nodes of a graph, and it does so in time that is linear in their number"
DOCSTRING = f"""Returns paths.

{RUNNING}, as :math:`n` says [1]_.

Parameters
----------
G : graph
    {RUNNING}, which is no prose here.

Notes
-----
{RUNNING},
in two lines with ``code`` in them.

>>> G = nx.path_graph(4)  # {RUNNING}.

Examples
--------
{RUNNING} but this is an example.
"""


def test_only_running_text_stays():
    assert prose(DOCSTRING) == f"{RUNNING}, as n says.\n\n{RUNNING}, in two lines with code in them."


def test_documents_are_grouped_by_module_and_short_ones_are_left_out(tmp_path):
    wheel = tmp_path / "package.whl"
    long = f'"""{RUNNING}. {RUNNING}.\n\n{RUNNING}. {RUNNING}."""\n'
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("package/a.py", f'{long}def f():\n    "Short."\n')
        archive.writestr("package/tests/b.py", long)
        archive.writestr("package/data.txt", long)
    (record,) = docstrings(wheel)
    assert record.group == "package/a.py" and json.loads(record.text)["text"].count(RUNNING) == 4
