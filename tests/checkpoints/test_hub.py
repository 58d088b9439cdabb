"""The hub without a network: its client is replaced, its errors are the real ones."""

from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors

from varlit.checkpoints.hub import WANTED, fetch, is_hub_id, upload
from varlit.errors import UserError


def answer(status):
    request = SimpleNamespace(headers={}, method="GET", url="https://hub.invalid")
    return SimpleNamespace(status_code=status, headers={}, request=request)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("you/d16", True),
        ("FoundationVision/var", True),
        ("d16", False),
        ("./d16", False),
        ("../d16", False),
        ("/runs/d16", False),
        ("runs/a/b", False),
    ],
)
def test_a_hub_name_is_owner_and_model(name, expected):
    assert is_hub_id(name) is expected


def test_a_model_is_fetched_without_anything_that_could_carry_code(runs, monkeypatch):
    asked = {}

    def snapshot_download(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        return str(runs / "tok")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert fetch("you/tok", "v1") == runs / "tok"
    assert (asked["repo_id"], asked["revision"]) == ("you/tok", "v1")
    assert asked["allow_patterns"] == WANTED
    assert all(pattern.endswith((".json", ".safetensors")) for pattern in WANTED)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.LocalEntryNotFoundError("no"), "not in the local cache.*go online once"),
        (errors.OfflineModeIsEnabled("no"), "not in the local cache"),
        (ConnectionError("no"), "was not reached"),
        (errors.RepositoryNotFoundError("no", response=answer(404)), "check the spelling"),
        (errors.RevisionNotFoundError("no", response=answer(404)), "the hub has no you/tok"),
        (errors.HfHubHTTPError("busy", response=answer(503)), "did not give you/tok: busy"),
        (errors.HFValidationError("Cannot have .."), "Cannot have ..; check the name"),
    ],
)
def test_what_goes_wrong_is_said_in_one_breath(monkeypatch, error, message):
    def snapshot_download(repo_id, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(UserError, match=message):
        fetch("you/tok")


def test_a_repository_of_something_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(UserError, match=r"no varlit model.*varlit convert"):
        fetch("FoundationVision/var")


def test_really_offline_the_cache_is_asked_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="not in the local cache"):
        fetch("you/not-there", local_files_only=True)


def make_api(calls, has_card=False):
    return SimpleNamespace(
        create_repo=lambda repo_id, **options: calls.append(("create", repo_id, options)),
        file_exists=lambda repo_id, name: has_card,
        upload_folder=lambda **options: (
            calls.append(("upload", options["repo_id"], options["folder_path"])),
            SimpleNamespace(repo_url=f"https://hub.invalid/{options['repo_id']}"),
        )[1],
    )


@pytest.mark.parametrize("has_card", [False, True])
def test_a_folder_is_uploaded_with_a_card_where_there_is_none(tmp_path, monkeypatch, has_card):
    calls = []
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: make_api(calls, has_card))
    page = upload(tmp_path, "you/tok", "tokenizer", private=True)
    assert page == "https://hub.invalid/you/tok"
    assert calls[0] == ("create", "you/tok", {"private": True, "exist_ok": True})
    assert calls[1] == ("upload", "you/tok", tmp_path)
    assert (tmp_path / "README.md").is_file() is not has_card


def test_a_refusal_of_the_hub_says_how_to_log_in(tmp_path, monkeypatch):
    def refuse(repo_id, **options):
        raise errors.HfHubHTTPError("401 Unauthorized", response=answer(401))

    api = make_api([])
    api.create_repo = refuse
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    with pytest.raises(UserError, match=r"401 Unauthorized.*hf auth login"):
        upload(tmp_path, "you/tok", "tokenizer")


@pytest.mark.parametrize("client", ["httpx", "httpx2", "requests.exceptions"])
def test_a_dead_line_is_no_traceback_whatever_client_the_hub_uses(tmp_path, monkeypatch, client):
    broken = type("ConnectError", (Exception,), {"__module__": client})

    def hang_up(repo_id, **options):
        raise broken("[Errno 111] Connection refused")

    api = make_api([])
    api.create_repo = hang_up
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    with pytest.raises(UserError, match=r"Connection refused. Be online"):
        upload(tmp_path, "you/tok", "tokenizer")
    broken.__module__ = "varlit.models"
    with pytest.raises(broken):
        upload(tmp_path, "you/tok", "tokenizer")
