"""docs/colab.ipynb in a session that is lost in the middle of a training, and once more in a new one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.workspace import ROOT, make_workspace

LIMIT_S = 900  # generous: other work may use the same cores


def cells():
    notebook = json.loads((ROOT / "docs/colab.ipynb").read_text())
    return [
        ("".join(cell["source"]), cell["metadata"].get("tags", []))
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
    ]


def script(folder: Path, environment: dict[str, str]) -> Path:
    """The notebook's cells as one program, the installation left out."""
    lines = ["import os, subprocess, sys"]
    for source, tags in cells():
        if "install" in tags:
            continue
        if source.startswith("%%bash\n"):
            lines.append(
                f"subprocess.run(['bash', '-c', {source.removeprefix('%%bash' + chr(10))!r}], check=True)"
            )
        else:
            lines.append(source)
    path = folder / "notebook.py"
    path.write_text("\n".join(lines))
    return path


@pytest.mark.faults
def test_a_lost_session_costs_no_more_than_the_steps_since_the_last_checkpoint(tmp_path, small_model):
    origin = make_workspace(tmp_path / "origin", small_model)
    variants = {"B": origin.params()["variants"]["B"]}
    origin.set(variants=variants, evaluation__test_of="B", train__save_steps=2)
    origin.set(variants__B__train__max_steps=400)
    origin.git("add", "-A", "-f", "models/own", "data/own")
    origin.commit("a longer training")
    environment = os.environ | {
        "REPOSITORY": str(origin.root),
        "DRIVE": str(tmp_path / "drive"),
        "PROJECT": str(tmp_path / "session"),
        "PROFILE": "tiny",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    notebook = script(tmp_path, environment)

    session = subprocess.Popen(
        [sys.executable, str(notebook)], env=environment, cwd=tmp_path, start_new_session=True
    )
    deadline = time.monotonic() + LIMIT_S
    while not list((tmp_path / "drive/checkpoints/B").glob("1/*/step-*/manifest.json")):
        assert session.poll() is None, "the notebook ended before it trained B"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(session.pid, signal.SIGKILL)
    session.wait()
    reached = max(
        int(step.name.removeprefix("step-")) for step in (tmp_path / "drive/checkpoints/B").glob("1/*/step-*")
    )
    shutil.rmtree(tmp_path / "session")

    done = subprocess.run(
        [sys.executable, str(notebook)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "session/models/B/training.json").read_text())
    (resumed,) = record["replicates"][0]["resumed_at"]
    assert reached - 2 <= resumed <= reached
    assert (tmp_path / "drive/plots/report.html").exists()
    assert "Running stage 'train@B'" in done.stdout
    assert "Running stage 'format@B'" not in done.stdout, "finished stages come from the store"
