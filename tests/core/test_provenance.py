"""What is written down about a run is about that run."""

import subprocess
import sys

GROWN = """
import subprocess, sys
kept = bytearray(400 * 2**20)
kept[::4096] = b"x" * len(kept[::4096])
own = "from abctune.core.provenance import peak_rss_gib; print(peak_rss_gib())"
subprocess.run([sys.executable, "-c", own], check=True)
exec(own)
"""


def test_a_peak_is_the_process_own_and_not_that_of_the_one_that_started_it():
    run = subprocess.run([sys.executable, "-c", GROWN], check=True, capture_output=True, text=True)
    child, parent = map(float, run.stdout.split())
    assert parent > 0.4 > 0.2 > child > 0.005


def test_a_folders_hash_is_dvcs(tmp_path):
    from dvc_data.hashfile.build import build
    from dvc_data.hashfile.db.local import LocalHashFileDB
    from dvc_objects.fs.local import LocalFileSystem

    from abctune.core.provenance import dvc_folder_hash

    folder = tmp_path / "models/A"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub/b.txt").write_text("b")
    (folder / "a-é.txt").write_text("a")
    files = LocalFileSystem()
    store = LocalHashFileDB(files, str(tmp_path / "cache"))
    _, _, found = build(store, str(folder), files, "md5")
    assert dvc_folder_hash(folder) == found.hash_info.value
