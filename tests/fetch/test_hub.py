"""Origin hub: the real client against a hub on loopback."""

from __future__ import annotations

import hashlib
import io
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.fetch.conftest import NO_WAIT, Project
from tests.hub_server import Hub, Repository

ROWS = [
    {"conversations": [{"from": "human", "value": f"question {n}"}, {"from": "gpt", "value": "answer"}]}
    for n in range(3000)
]
TOKEN = "hf_secretsecretsecret"


def parquet(rows: list[dict]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


def safetensors(size: int = 1000) -> bytes:
    header = json.dumps({"weight": {"dtype": "F32", "shape": [size], "data_offsets": [0, 4 * size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4 * size)


def model_files(**more: bytes) -> dict[str, bytes]:
    return {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": safetensors()} | more


@pytest.fixture
def dataset(hub: Hub, project: Project) -> Repository:
    files = {
        "README.md": b"about",
        "data/train.parquet": parquet(ROWS),
        "rows.json": json.dumps(ROWS[:2]).encode(),
    }
    repository = hub.add("dataset", "someone/chats", files)
    project.hub_source(repository, "data/train.parquet")
    project.environment["HF_ENDPOINT"] = hub.url
    return repository


@pytest.fixture
def model(hub: Hub, project: Project) -> Repository:
    refused = {
        "pytorch_model.bin": b"pickle",
        "modeling.py": b"code",
        "README.md": b"about",
        "original/model.safetensors": b"x",
    }
    repository = hub.add("model", "someone/small", model_files(**{"generation_config.json": b"{}"}) | refused)
    project.hub_model(repository)
    project.environment["HF_ENDPOINT"] = hub.url
    return repository


def test_a_dataset_arrives_as_rows_with_its_origin(project: Project, hub: Hub, dataset: Repository) -> None:
    done = project.fetched("chat")

    assert "fetched chat: 3,000 rows" in done.stdout
    assert project.records() == ROWS
    assert [row["row"] for row in project.rows()] == list(range(3000))
    assert {row["group"] for row in project.rows()} == {None}
    content = dataset.files["data/train.parquet"]
    assert project.about(project.raw / "chat") == {
        "origin": "hub",
        "license": "MIT",
        "repo": "someone/chats",
        "revision": dataset.revision,
        "files": {
            "data/train.parquet": {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        },
        "rows": 3000,
    }
    assert len(hub.downloads()) == 2  # the file asked for (the hub, then its store), and no other


def test_several_files_become_one_source_in_the_order_named(project: Project, dataset: Repository) -> None:
    project.hub_source(dataset, "rows.json", "data/train.parquet")
    project.fetched("chat")
    assert project.records() == ROWS[:2] + ROWS


def test_a_model_arrives_without_code_or_pickles(project: Project, hub: Hub, model: Repository) -> None:
    done = project.fetched("--model")

    wanted = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert {path.name for path in project.base.iterdir()} == wanted | {"source.json"}
    assert all((project.base / name).read_bytes() == model.files[name] for name in wanted)
    about = project.about(project.base)
    assert set(about["files"]) == wanted
    assert about["parameters"] == 1000
    assert "fetched the base model" in done.stdout
    left = [path for path in project.home.rglob("*") if path.is_file() and path.stat().st_size]
    assert left == []  # nothing lies on the disk twice
    assert {request.path.split("/")[1] for request in hub.requests} == {"api", "someone"}  # no telemetry
    assert all("torch" not in request.headers["user-agent"] for request in hub.requests)


def test_a_model_s_index_says_which_files_to_download(project: Project, model: Repository) -> None:
    model.files["part_a.safetensors"] = model.files.pop("model.safetensors")
    model.files["model.safetensors.index.json"] = b'{"weight_map": {"weight": "part_a.safetensors"}}'
    project.fetched("--model")
    assert (project.base / "part_a.safetensors").read_bytes() == model.files["part_a.safetensors"]


def test_the_token_goes_to_the_hub_and_nowhere_else(project: Project, hub: Hub, model: Repository) -> None:
    model.accepted_token = TOKEN
    done = project.fetched("--model", HF_TOKEN=f"{TOKEN}\n", HF_DEBUG="1")

    assert all(request.headers["authorization"] == f"Bearer {TOKEN}" for request in hub.requests)
    assert hub.store_requests
    assert all(TOKEN not in str(request) for request in hub.store_requests)
    assert TOKEN not in done.stdout + done.stderr
    files = [path for path in project.root.rglob("*") if path.is_file()]
    assert all(TOKEN.encode() not in path.read_bytes() for path in files)


def test_a_token_in_a_file_of_the_users_is_not_sent(project: Project, hub: Hub, model: Repository) -> None:
    project.home.mkdir()
    (project.home / "token").write_text(TOKEN)
    project.fetched("--model")
    assert all("authorization" not in request.headers for request in hub.requests)


def test_a_token_that_is_none_is_refused_without_being_shown(project: Project, model: Repository) -> None:
    line = project.refused("--model", HF_TOKEN="se cret")
    assert "HF_TOKEN" in line
    assert "cret" not in line


@pytest.mark.parametrize(
    ("token", "status", "hint"), [("", 401, "HF_TOKEN is not set"), ("hf_other", 403, "is not enough")]
)
def test_a_gated_repository_names_the_licence_page_and_the_token(
    project: Project, hub: Hub, model: Repository, token: str, status: int, hint: str
) -> None:
    model.accepted_token = TOKEN
    line = project.refused("--model", HF_TOKEN=token)
    assert f"(status {status}, " in line
    assert hint in line
    assert f"Accept its licence at {hub.url}/someone/small, then set HF_TOKEN" in line
    assert "params.yaml: profiles.tiny.model.repo: no access to someone/small" in line


@pytest.mark.faults  # a process for each refusal, and one for each remedy
def test_what_the_hub_refused_arrives_once_the_message_is_followed(
    project: Project, hub: Hub, model: Repository, dataset: Repository
) -> None:
    model.accepted_token = TOKEN
    assert "then set HF_TOKEN to a token of that account" in project.refused("--model")
    project.fetched("--model", HF_TOKEN=TOKEN)
    assert "set it again, or unset it" in project.refused("chat", HF_TOKEN="se cret")
    assert "unset it and run again" in project.refused("chat", HF_HUB_OFFLINE="1")
    assert "correct it, or unset it" in project.refused("chat", HF_ENDPOINT="no address")
    project.fetched("chat")

    source = project.params["profiles"]["tiny"]["sources"]["chat"]
    for key, wrong, remedy in (
        ("repo", "someone/chat", "check its name"),
        ("revision", "0" * 40, "copy a full hash from the repository's history"),
        ("files", ["data/test.parquet"], "data/train.parquet"),  # it names those that there are
    ):
        right, source[key] = source[key], wrong
        assert remedy in project.refused("chat", HF_TOKEN=TOKEN)
        source[key] = right
        shutil.rmtree(project.raw)
        project.fetched("chat")
        assert project.records() == ROWS


def test_an_unknown_repository_names_its_key(project: Project, dataset: Repository) -> None:
    dataset.name = "someone/else"
    line = project.refused("chat", HF_TOKEN=TOKEN)
    assert "params.yaml: profiles.tiny.sources.chat.repo: the hub has no dataset someone/chats" in line


def test_an_unknown_revision_names_its_key(project: Project, dataset: Repository) -> None:
    dataset.revision = "0" * 40
    line = project.refused("chat")
    assert "params.yaml: profiles.tiny.sources.chat.revision: someone/chats has no commit" in line


def test_a_branch_is_no_revision(project: Project, dataset: Repository) -> None:
    dataset.revision = "main"
    project.hub_source(dataset, "data/train.parquet")
    assert "profiles.tiny.sources.chat.revision: 'main' is not a full commit hash" in project.refused("chat")


def test_an_unknown_file_names_its_key(project: Project, dataset: Repository) -> None:
    project.hub_source(dataset, "data/test.parquet")
    line = project.refused("chat")
    assert "params.yaml: profiles.tiny.sources.chat.files: someone/chats has no 'data/test.parquet'" in line


def test_a_file_that_the_hub_lists_but_has_not_is_one_line(project: Project, dataset: Repository) -> None:
    dataset.hidden.add("data/train.parquet")
    assert "is listed but missing" in project.refused("chat")


def test_a_file_of_another_kind_is_refused_before_it_is_downloaded(
    project: Project, hub: Hub, dataset: Repository
) -> None:
    project.hub_source(dataset, "README.md")
    assert "profiles.tiny.sources.chat.files: 'README.md' must end in" in project.refused("chat")
    assert hub.requests == []


def test_a_cut_download_goes_on_where_it_stopped(project: Project, hub: Hub, dataset: Repository) -> None:
    hub.cuts = [5000]
    done = project.fetched("chat")
    assert project.records() == ROWS
    assert "trying again in 1 s" in done.stderr
    assert [request.headers.get("range") for request in hub.store_requests] == [None, "bytes=5000-"]


def test_a_download_that_keeps_failing_is_continued_by_the_next_run(
    project: Project, hub: Hub, model: Repository
) -> None:
    hub.cuts = [1200, 300, 500]
    line = project.refused("--model", prelude=NO_WAIT)
    assert "downloading model.safetensors of someone/small failed 3 times: the connection was cut" in line
    hub.requests.clear()
    hub.store_requests.clear()

    project.fetched("--model")
    assert (project.base / "model.safetensors").read_bytes() == model.files["model.safetensors"]
    assert [request.headers.get("range") for request in hub.store_requests] == ["bytes=2000-"]
    assert not any("config.json" in request.path for request in hub.downloads())  # it was complete


@pytest.mark.parametrize("status", [429, 503])
def test_a_hub_in_trouble_is_asked_again(
    project: Project, hub: Hub, dataset: Repository, status: int
) -> None:
    hub.answers = [status, status]
    project.fetched("chat", prelude=NO_WAIT)
    shutil.rmtree(project.cache)
    hub.answers = [status] * 3
    line = project.refused("chat", prelude=NO_WAIT)
    assert f"failed 3 times: the hub answered with status {status}" in line
    assert hub.answers == []


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_with_the_wrong_hash_is_refused_and_deleted(
    project: Project, hub: Hub, model: Repository, name: str
) -> None:
    wrong = bytearray(model.files[name])
    wrong[-1] ^= 1
    model.served[name] = bytes(wrong)
    line = project.refused("--model")
    assert f"{name} of someone/small at revision {model.revision} has not the hash that the hub lists" in line

    model.served.clear()
    project.fetched("--model")  # the damaged bytes are not used again
    assert (project.base / name).read_bytes() == model.files[name]


def test_without_a_network_one_line_says_what_needs_none(
    project: Project, hub: Hub, dataset: Repository
) -> None:
    line = project.refused("chat", prelude=NO_WAIT, HF_ENDPOINT="http://127.0.0.1:9")
    assert "the model hub cannot be reached" in line
    assert "Profile tiny needs no hub" in line


def test_offline_mode_is_named(project: Project, dataset: Repository) -> None:
    assert "HF_HUB_OFFLINE is set" in project.refused("chat", HF_HUB_OFFLINE="1")


def test_an_endpoint_that_is_no_address_is_named(project: Project, dataset: Repository) -> None:
    assert "HF_ENDPOINT is no web address" in project.refused("chat", HF_ENDPOINT="hub")


def test_a_login_page_is_not_taken_for_a_hub(project: Project, hub: Hub, dataset: Repository) -> None:
    hub.answers = [200]
    assert "something else than a model hub answers" in project.refused("chat")


def test_a_model_of_pickles_alone_is_refused(project: Project, hub: Hub, model: Repository) -> None:
    del model.files["model.safetensors"]
    line = project.refused("--model")
    assert "someone/small at revision" in line
    assert "has no model.safetensors (pytorch_model.bin is refused: loading a pickle runs code)" in line
    assert hub.downloads() == []


def test_a_quantized_model_is_refused_before_its_weights_are_downloaded(
    project: Project, hub: Hub, model: Repository
) -> None:
    model.files["config.json"] = json.dumps({"quantization_config": {"quant_method": "gptq"}}).encode()
    assert "has quantized weights (config.json: quant_method gptq)" in project.refused("--model")
    assert not any("safetensors" in request.path for request in hub.downloads())


def test_named_templates_arrive_in_their_folder(project: Project, model: Repository) -> None:
    named = {"additional_chat_templates/tool_use.jinja": b"{{ tools }}", "deep/other.jinja": b"x"}
    model.files |= named
    project.fetched("--model")
    assert (project.base / "additional_chat_templates/tool_use.jinja").read_bytes() == b"{{ tools }}"
    assert not (project.base / "deep").exists()
    assert "additional_chat_templates/tool_use.jinja" in project.about(project.base)["files"]


def test_damaged_weights_are_refused(project: Project, model: Repository) -> None:
    model.files["model.safetensors"] = b"not safetensors at all"
    assert "model.safetensors of the base model is damaged" in project.refused("--model")


def test_a_copy_that_another_program_downloaded_is_used(
    project: Project, hub: Hub, model: Repository
) -> None:
    cached = project.home / "hub/models--someone--small/snapshots" / model.revision / "model.safetensors"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(model.files["model.safetensors"])
    project.fetched("--model")
    assert hub.store_requests == []
    assert cached.exists()

    cached.write_bytes(b"damaged")
    project.fetched("--model")
    assert (project.base / "model.safetensors").read_bytes() == model.files["model.safetensors"]


CARD = b"""---
configs:
- config_name: small
  data_files:
  - split: train
    path: small/part-*.parquet
  - split: test
    path: small/held.parquet
- config_name: large
  data_files: large/*.jsonl
---
About.
"""


@pytest.fixture
def configs(hub: Hub, project: Project) -> Repository:
    """A repository whose card names two configs."""
    files = {
        "README.md": CARD,
        "small/part-0.parquet": parquet(ROWS[:2]),
        "small/part-1.parquet": parquet(ROWS[2:3]),
        "small/held.parquet": parquet(ROWS[3:4]),
        "large/rows.jsonl": json.dumps(ROWS[4]).encode(),
    }
    project.environment["HF_ENDPOINT"] = hub.url
    return hub.add("dataset", "someone/configs", files)


def split_of(project: Project, repository: Repository, **more: str | int) -> None:
    project.source(origin="hub", repo=repository.name, revision=repository.revision, license="MIT", **more)


def test_a_glob_names_several_files(project: Project, configs: Repository) -> None:
    project.hub_source(configs, "small/part-*.parquet")
    project.fetched("chat")
    assert project.records() == ROWS[:3]


def test_a_config_and_a_split_name_the_cards_files_and_no_other_is_downloaded(
    project: Project, hub: Hub, configs: Repository
) -> None:
    split_of(project, configs, config="small", split="train")
    project.fetched("chat")
    assert project.records() == ROWS[:3]
    about = project.about(project.raw / "chat")
    assert (about["config"], about["split"]) == ("small", "train")
    assert set(about["files"]) == {"small/part-0.parquet", "small/part-1.parquet"}
    assert not [request for request in hub.downloads() if "held" in request.path or "large" in request.path]

    hub.requests.clear()
    split_of(project, configs, config="small", split="train")
    project.fetched("chat", HF_ENDPOINT="http://127.0.0.1:9")  # all of it is in the cache
    assert project.records() == ROWS[:3]


@pytest.mark.parametrize(("first_rows", "files"), [(1, [0]), (2, [0]), (3, [0, 1]), (9, [0, 1])])
def test_the_first_rows_alone_are_had_and_no_file_after_them_is_downloaded(
    project: Project, hub: Hub, configs: Repository, first_rows: int, files: list[int]
) -> None:
    split_of(project, configs, config="small", split="train", first_rows=first_rows)
    project.fetched("chat")
    assert project.records() == ROWS[: min(first_rows, 3)]
    about = project.about(project.raw / "chat")
    assert set(about["files"]) == {f"small/part-{number}.parquet" for number in files}
    assert about["first_rows"] == first_rows
    downloads = " ".join(request.path for request in hub.downloads())
    assert ("part-1" in downloads) == (1 in files)


def test_a_split_without_a_card_is_found_by_the_files_names(project: Project, dataset: Repository) -> None:
    del dataset.files["rows.json"]
    split_of(project, dataset, split="train")
    project.fetched("chat")
    assert project.records() == ROWS


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (
            {"config": "small", "split": "val"},
            "sources.chat.split: someone/configs has the splits train, test",
        ),
        ({"config": "huge", "split": "train"}, "sources.chat.config: BuilderConfig 'huge' not found"),
        ({"split": "train"}, "sources.chat.config: "),
    ],
)
def test_a_config_or_split_that_is_none_names_those_there_are(
    project: Project, configs: Repository, named: dict[str, str], message: str
) -> None:
    split_of(project, configs, **named)
    line = project.refused("chat")
    assert message in line
    assert "small" in line or "train" in line
