"""No stranger's code runs here, nothing unpinned is fetched, and no secret is written down."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from abctune.core.errors import UserError
from abctune.core.params import load_params
from abctune.llm.conversation import Message
from abctune.llm.tokenizer import load_tokenizer
from stages.format.render import Renderer
from stages.format.repairs import Conversation
from stages.format.turns import Rejected
from tests import small
from tests.faults.test_dvc import make_project
from tests.hub_server import Hub
from tests.workspace import Workspace, make_workspace

ROOT = Path(__file__).parent.parent
PACKAGES = ("abctune", "stages", "tools", "app", "benchmarks")
OURS = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
COMMIT, SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")


# --- what is fetched is pinned -----------------------------------------------------------------------------


def origins() -> list[tuple[str, dict]]:
    """Every place of params.yaml that names something to fetch."""
    profiles = YAML(typ="safe").load((ROOT / "params.yaml").read_text())["profiles"]
    return [
        (f"profiles.{name}.{key}", origin)
        for name, profile in profiles.items()
        for key, origin in [
            ("model", profile["model"]),
            *((f"sources.{source}", origin) for source, origin in profile["sources"].items()),
        ]
    ]


@pytest.mark.parametrize(("key", "origin"), origins(), ids=[key for key, _ in origins()])
def test_every_model_and_data_set_is_pinned_by_commit_or_hash(key: str, origin: dict) -> None:
    if origin["origin"] == "hub":
        assert COMMIT.fullmatch(origin["revision"]), f"{key}.revision"
    elif origin["origin"] == "wheel":
        assert origin["sha256"] and all(map(SHA256.fullmatch, origin["sha256"])), f"{key}.sha256"
    else:
        assert origin["path"].startswith(("data/own/", "models/own/")), f"{key}.path"


@pytest.mark.parametrize(
    "revision", ["main", "v1.0", "006f5dc", "refs/pr/1", "0" * 39, "0" * 41, "G" * 40, "", None]
)
@pytest.mark.parametrize("key", ["model", "sources.chat"])
def test_any_other_revision_is_refused(tmp_path: Path, key: str, revision: str | None) -> None:
    with pytest.raises(UserError, match=rf"profiles\.full\.{re.escape(key)}\.revision: "):
        load_params(with_param(tmp_path, f"profiles.full.{key}.revision", revision))


@pytest.mark.parametrize("sha256", ["0" * 63, "0" * 65, "G" * 64, "md5:" + "0" * 32, ""])
@pytest.mark.parametrize("key", ["model", "sources.instruct"])
def test_any_other_hash_is_refused(tmp_path: Path, key: str, sha256: str) -> None:
    with pytest.raises(UserError, match=rf"profiles\.tiny\.{re.escape(key)}\.sha256"):
        load_params(with_param(tmp_path, f"profiles.tiny.{key}.sha256", [sha256]))
    with pytest.raises(UserError, match=rf"profiles\.tiny\.{re.escape(key)}\.sha256"):
        load_params(with_param(tmp_path, f"profiles.tiny.{key}.sha256", []))


def with_param(folder: Path, path: str, value: object) -> Path:
    params = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text())
    *parents, key = path.split(".")
    place = params
    for parent in parents:
        place = place[parent]
    place[key] = value
    file = folder / "params.yaml"
    with file.open("w") as out:
        YAML().dump(params, out)
    return file


def install_options(requirements: str) -> list[str]:
    """What `make` installs a file of pins with: the options behind `pip install`."""
    lines = (ROOT / "Makefile").read_text().splitlines()
    pattern = rf"pip install (.*) --requirement {re.escape(requirements)}$"
    [options] = {
        found[1].replace("--python $(BIN)/python ", "")
        for line in lines
        if (found := re.search(pattern, line))
    }
    return options.split()


@pytest.mark.parametrize("installer", ["pip", "uv"])
@pytest.mark.parametrize("flaw", ["wrong hash", "no hash", "changed wheel", None])
def test_the_install_refuses_a_wheel_whose_hash_is_not_in_the_lock(
    tmp_path: Path, flaw: str | None, installer: str
) -> None:
    """pip installs uv, uv installs the lock."""
    wheel = tmp_path / "wheels/thing-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    write_wheel(wheel, b"sound = 1\n")
    sha256 = subprocess.run(["sha256sum", wheel], capture_output=True, text=True).stdout.split()[0]
    if flaw == "changed wheel":
        write_wheel(wheel, b"evil = 1\n")
    pin = {"wrong hash": f" --hash=sha256:{'0' * 64}", "no hash": ""}.get(
        flaw or "", f" --hash=sha256:{sha256}"
    )
    (tmp_path / "requirements.txt").write_text(f"thing==1.0{pin}\n")
    offline = ["--no-index", "--find-links", tmp_path / "wheels", "--target", tmp_path / "installed"]
    if installer == "uv" and not shutil.which("uv"):
        pytest.skip("no uv here: `make` installs it")
    program = {"pip": [sys.executable, "-m", "pip"], "uv": ["uv", "pip"]}[installer]
    options = install_options({"pip": "requirements-uv.txt", "uv": "requirements.txt"}[installer])
    command = [*program, "install", *options, *offline, "--requirement", tmp_path / "requirements.txt"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"UV_PYTHON": sys.executable}
    )
    installed = (tmp_path / "installed/thing.py").exists()
    if flaw:
        assert done.returncode and not installed
        assert "hash" in done.stderr.lower()
    else:
        assert done.returncode == 0 and installed, done.stderr


def write_wheel(path: Path, code: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("thing.py", code)
        archive.writestr("thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
        archive.writestr(
            "thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("thing-1.0.dist-info/RECORD", "")


HOLE = {"id": "PYSEC-1", "fix_versions": ["2"], "aliases": [], "description": ""}
SOUND, HOLED = {"name": "a", "version": "1", "vulns": []}, {"name": "b", "version": "1", "vulns": [HOLE]}
SKIPPED = {"name": "c", "skip_reason": "Dependency not found on PyPI and could not be audited: c (1)"}


@pytest.mark.parametrize(
    ("packages", "status", "says"),
    [
        ([SOUND], 0, "1 of 1 packages looked up, 0 known vulnerabilities"),
        ([SOUND, HOLED], 1, "b 1: PYSEC-1, mended in 2"),
        ([SOUND, SKIPPED], 2, "not audited: c"),
        ([SKIPPED, SKIPPED], 2, "cannot be reached from here: nothing was audited"),
        (None, 2, "cannot be reached from here: nothing was audited"),
    ],
)
def test_an_audit_that_looked_nothing_up_does_not_pass(
    tmp_path: Path, packages: list[dict] | None, status: int, says: str
) -> None:
    """pip-audit itself says "No known vulnerabilities found" of packages that it could not look up."""
    found = tmp_path / "found.json"
    if packages is not None:
        found.write_text(json.dumps({"dependencies": packages, "fixes": []}))
    done = subprocess.run([sys.executable, ROOT / ".ci/audit.py", found], capture_output=True, text=True)
    assert done.returncode == status
    assert says in done.stdout


# --- no stranger's code runs -------------------------------------------------------------------------------


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


def test_no_code_of_a_model_repository_is_trusted() -> None:
    for path in OURS:
        for call in calls(path):
            for word in call.keywords:
                trusted = word.arg == "trust_remote_code" and ast.unparse(word.value) != "False"
                assert not trusted, f"{path}:{call.lineno}"


def test_pickles_are_read_with_weights_only_or_not_at_all() -> None:
    for path in OURS:
        assert not re.search(
            r"^\s*(import|from) (pickle|cloudpickle|dill|joblib|shelve)\b", path.read_text(), re.M
        ), path
        for call in calls(path):
            if ast.unparse(call.func) in ("torch.load", "load") and "torch" in ast.unparse(call.func):
                named = {word.arg: ast.unparse(word.value) for word in call.keywords}
                assert named.get("weights_only") == "True", f"{path}:{call.lineno}"


@pytest.fixture
def project(tmp_path: Path, small_model: Path) -> Workspace:
    project = make_workspace(tmp_path, small_model)
    project.set(variants__A__mix={"chat": 20})
    return project


def formats(project: Workspace) -> str:
    """Fetch the model and format some rows; what was printed, whether it went well or not."""
    printed = ""
    for stage in (("fetch", "--model"), ("fetch", "chat"), ("mix", "A"), ("format", "A")):
        done = project.stage(*stage, check=False)
        printed += done.stdout + done.stderr
    return printed


EVIL = "{{ cycler.__init__.__globals__.os.popen('touch marker').read() }}"


@pytest.mark.parametrize(
    "template",
    [
        EVIL,
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ self.__init__.__globals__.__builtins__.__import__('os').system('touch marker') }}",
        "{{ messages.append(1) }}{{ raise_exception.__globals__['__builtins__']['open']('marker', 'w') }}",
        "{% include 'secret' %}",
        "{% import 'secret' as secret %}{{ secret }}",
        "{{ lipsum.__globals__['os'].environ }}",
        "{% for number in range(10**12) %}{% endfor %}",
    ],
)
def test_a_models_chat_template_runs_no_code_and_reads_no_file(
    tmp_path: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    shutil.copytree(small_model, tmp_path / "base")
    (tmp_path / "base/chat_template.jinja").write_text(template + small.CHATML)
    (tmp_path / "secret").write_text("the secret")
    monkeypatch.chdir(tmp_path)
    tokenizer = load_tokenizer(Path("base"))
    assert tokenizer.chat_template.startswith(template)
    with pytest.raises(Rejected, match="chat template fails") as rejected:
        messages: list[Message] = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
        Renderer(tokenizer, 100).cut(Conversation(messages, [False, True]))
    assert "the secret" not in str(rejected.value)
    assert not Path("marker").exists()


def test_format_says_that_the_template_fails(project: Workspace) -> None:
    (project.root / "models/own/small/chat_template.jinja").write_text(EVIL + small.CHATML)
    printed = formats(project)
    assert "fetched the base model" in printed
    assert (
        "20 of 20 rows of chat (100.0%) cannot be used (chat template fails (access to attribute" in printed
    )
    assert "Traceback" not in printed
    assert not (project.root / "marker").exists()
    assert not (project.root / "data/formatted/A").exists()


def test_code_and_pickles_in_a_model_folder_are_not_copied_and_not_run(project: Workspace) -> None:
    own, base = project.root / "models/own/small", project.root / "models/base"
    config = json.loads((own / "config.json").read_text())
    classes = {
        "AutoConfig": "evil.Config",
        "AutoModelForCausalLM": "evil.Model",
        "AutoTokenizer": ["evil.T", "evil.T"],
    }
    (own / "config.json").write_text(json.dumps(config | {"auto_map": classes}))
    for name in ("evil.py", "pytorch_model.bin", "training_args.bin", "optimizer.pt", "x.pth"):
        (own / name).write_text("open('marker', 'w')\n")
    printed = formats(project)
    assert {path.suffix for path in base.iterdir()} <= {".json", ".safetensors", ".jinja"}
    (base / "evil.py").write_text("open('marker', 'w')\n")  # even if it got there
    printed += project.stage("format", "A").stdout
    assert "20 rows" in printed or "20 read" in printed
    assert not (project.root / "marker").exists()


# --- params stay out of the shell --------------------------------------------------------------------------

PAYLOADS = ("x;touch marker #", "x$(touch marker)", "x`touch marker`", "x|touch marker")


def test_no_command_of_the_pipeline_holds_a_value_of_params() -> None:
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    for name, stage in stages.items():
        cmd = stage.get("do", stage)["cmd"]
        assert re.fullmatch(
            r"python -m stages\.[a-z]+( --model| --general| --own (data|model)| base)?", cmd
        ), f"{name}: {cmd}"


def test_a_key_of_params_runs_no_command(project: Workspace) -> None:
    (project.root / "data/raw").mkdir(parents=True, exist_ok=True)
    lists = project.root / "data/own-files/sources"  # what the stage own-data writes, on which fetch depends
    lists.mkdir(parents=True, exist_ok=True)
    for payload in PAYLOADS:
        (lists / f"{payload}.json").write_text("{}")
        sources, variants = project.params()["sources"], project.params()["variants"]
        project.set(sources=sources | {payload: {}}, variants=variants | {payload: variants["A"]})
        for profile in ("tiny", "full"):
            named = project.params()["profiles"][profile]["sources"]
            project.set(**{f"profiles__{profile}__sources": named | {payload: named["chat"]}})
    lanes = [f"{stage}@{payload}" for payload in PAYLOADS for stage in ("fetch", "mix")]
    done = project.run("dvc", "repro", "--single-item", "--keep-going", *lanes, check=False)
    for lane in lanes:
        assert f"Running stage '{lane}'" in done.stdout, done.stdout + done.stderr
    assert done.stderr.count("a name may hold letters, digits, '_' and '-' only") == len(lanes)
    assert not (project.root / "marker").exists()


@pytest.mark.parametrize("key", PAYLOADS[1::2])
def test_a_key_given_to_an_experiment_runs_no_command(project: Workspace, key: str) -> None:
    (project.root / "data/raw").mkdir(parents=True, exist_ok=True)
    escaped = re.sub(r"([ ()])", r"\\\1", key)
    setting = f"+variants={{{escaped}: {{mix: {{chat: 1}}, train: {{}}}}}}"
    done = project.run("dvc", "exp", "run", "-S", setting, "--single-item", f"mix@{key}", check=False)
    assert f"Running stage 'mix@{key}'" in done.stdout, done.stdout + done.stderr
    assert done.returncode
    assert not (project.root / "marker").exists()


# --- a token is used, and stays in the environment -----------------------------------------------------------

TOKEN = "hf_SeededSecretOfThisTest"


def test_a_token_is_nowhere_in_what_a_whole_run_writes_or_prints(tmp_path: Path, small_model: Path) -> None:
    project = make_project(tmp_path / "project", small_model)
    project.draws = True
    rows = small.chat_records(120)
    with Hub() as hub:
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        repository = hub.add("dataset", "someone/gated", {"rows.jsonl": content}, accepted_token=TOKEN)
        source = {
            "origin": "hub",
            "repo": repository.name,
            "revision": repository.revision,
            "files": ["rows.jsonl"],
        }
        project.set(profiles__tiny__sources__chat=source | {"license": "MIT"})
        environment = {
            "HF_TOKEN": TOKEN, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_DEBUG": "1",
            "ABCTUNE_DEBUG": "1", "no_proxy": "*",
        }  # fmt: skip
        done = project.run("dvc", "repro", "--verbose", check=False, **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        assert all(request.headers.get("authorization") == f"Bearer {TOKEN}" for request in hub.requests)
        assert hub.requests
        # And of a run that fails, traceback and all: what was verified once is not asked for again, so forget it.
        environment["ABCTUNE_CACHE"] = str(tmp_path / "empty")
        repository.accepted_token = "another"
        project.set(profiles__tiny__sources__chat__license="changed")
        failed = project.run("dvc", "repro", check=False, **environment)
        assert (
            failed.returncode
            and "no access to someone/gated" in failed.stderr
            and "Traceback" in failed.stderr
        )
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    for wanted in (
        "dvc.lock",
        "models/C/README.md",
        "models/C/training.json",
        "plots/report.html",
        "metrics/summary.json",
    ):
        assert project.root / wanted in written
    assert [path for path in written if TOKEN.encode() in path.read_bytes()] == []
    assert TOKEN not in done.stdout + done.stderr + failed.stdout + failed.stderr
