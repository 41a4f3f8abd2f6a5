"""Projects for tests, see tests/workspace.py."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

from tests import quick, small, warm
from tests.finished import make_finished
from tests.workspace import Workspace, make_workspace

# The suite draws the same examples each time, so that it fails only for what was changed. To search on:
# `HYPOTHESIS_PROFILE=search python -m pytest tests/format/test_cases.py`.
settings.register_profile("same", derandomize=True)
settings.register_profile("search", derandomize=False, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

# Fixtures that run stages, DVC or a training in a project of their own. Tests that use one get the marker `project`,
# which `make check` leaves out.
PROJECT_FIXTURES = {
    "workspace",
    "split_once",
    "study_once",
    "trained",
    "ready_to_train",
    "project",
    "finished",
    "committed",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option of `make check`."""
    parser.addoption("--quick", action="store_true", help="only the tests of `make check` (tests/quick.py)")


def pytest_configure(config: pytest.Config) -> None:
    """Let commands run in warm processes, which all workers share."""
    if not hasattr(config, "workerinput"):
        if config.getoption("quick"):
            quick.find_changed(config.rootpath)
        folder = Path(tempfile.mkdtemp(prefix="abctune-tests-"))
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        warm.open_home(folder)
        if workers := getattr(config.option, "tx", None):
            config.option.tx = [warm.worker_spec(spec) for spec in workers]
            # The test processes wait for the server of their own kind; meanwhile a core is free for the other slow one.
            if warm.is_on() and config.args_source is pytest.Config.ArgsSource.TESTPATHS:
                warm.begin_server("unsloth")


# Files that take the longest, the longest first: begun last, one of them would keep one worker busy while the others
# have nothing left to do.
LONGEST = (
    "experiments/test_workflows.py",
    "app/test_browser.py",
    "faults/test_train_faults.py",
    "test_supply_chain.py",
    "tools/test_verify.py",
    "tools/test_promote.py",
    "train/test_processes.py",
    "train/test_sharding.py",
    "plot/test_plot.py",
    "experiments/test_plots.py",
    "tools/test_publish.py",
    "app/test_models.py",
    "tools/test_seeds.py",
    "sharing/test_sharing.py",
    "export/test_export.py",
    "test_remedies.py",
    "fetch/test_hub.py",
    "train/test_plain.py",
    "format/test_hostile.py",
    "experiments/test_table.py",
    "plot/test_report.py",
    "fetch/test_wheel.py",
    "tools/test_accept.py",
    "faults/test_dvc.py",
    "test_pipeline.py",
    "app/test_load.py",
    "fetch/test_own_files.py",
    "export/test_served.py",
    "eval/test_own_checks.py",
    "tools/test_own.py",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the longest files, mark the tests whose fixtures run a project, and choose those of `make check`."""
    place = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))
    for item in items:
        if PROJECT_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("project")
    if config.getoption("quick"):
        slow, changed = quick.slow_tests(), os.environ[quick.CHANGED].splitlines()
        chosen: dict[bool, list[pytest.Item]] = {True: [], False: []}
        for item in items:
            runs_project = item.get_closest_marker("project") is not None
            chosen[quick.is_left_out(item.nodeid, runs_project, slow, changed)].append(item)
        config.hook.pytest_deselected(items=chosen[True])
        items[:] = chosen[False]


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what is there for good: half a million objects of libraries and tests."""
    gc.collect()
    gc.freeze()


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder `name` that `make` fills once per test run: parallel workers wait for the first and then share it."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # each worker has a folder of its own in the run's folder
    folder, done = root / name, root / f"{name}.done"
    with FileLock(root / f"{name}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed half-way
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Downloads of tests are kept apart from the user's."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ABCTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "small-model", small.write_model)


@pytest.fixture
def workspace(tmp_path: Path, small_model: Path) -> Workspace:
    """A fresh Git and DVC project on a very small model; nothing has run yet."""
    return make_workspace(tmp_path, small_model)


@pytest.fixture(scope="session")
def split_once(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Path:
    """A project whose data are split, made once; tests copy it."""

    def make(folder: Path) -> None:
        project = make_workspace(folder, small_model)
        project.stage("fetch", "--model")
        project.stage("fetch", "--general")
        for source in ("chat", "instruct"):
            project.stage("fetch", source)
        for stage in ("mix", "format", "split"):
            for variant in "ABC":
                project.stage(stage, variant)

    return made_once(tmp_path_factory, "split", make)


@pytest.fixture
def ready_to_train(tmp_path: Path, split_once: Path) -> Workspace:
    """A project of its own in which every stage before train has run."""
    shutil.copytree(split_once, tmp_path, dirs_exist_ok=True)
    return Workspace(tmp_path)


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a finished run, made up, with its report; not to be changed."""

    def make(folder: Path) -> None:
        from stages.plot.__main__ import main as plot
        from tests.plot.fake_run import write_run

        folder.mkdir()
        write_run(folder, {})
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            plot()

    return made_once(tmp_path_factory, "reported", make)


@pytest.fixture(scope="session")
def study_once(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Path:
    return made_once(tmp_path_factory, "study", lambda folder: make_finished(folder, small_model))


@pytest.fixture
def study(tmp_path: Path, study_once: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A study of one's own in which everything has run and is in order; the test works in its folder."""
    root = tmp_path / "study"
    shutil.copytree(study_once, root, symlinks=True)
    monkeypatch.chdir(root)
    return Workspace(root)
