"""Pushing to the hub: with the network blocked, and with a server on this machine that asks the real client who it is."""

import http.server
import json
import shutil
import threading

import pytest
from huggingface_hub import constants

import expunge
from expunge.cli import main
from expunge.core.errors import ExpungeError
from expunge.stages import publish
from tiny import tiny_pipeline


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model's folder, and an edit of it with its key."""
    held, folder = tiny_pipeline(), tmp_path_factory.mktemp("made")
    held.save_pretrained(folder / "model")
    settings = {"iterations": 1, "prompt_lr": 0.5, "sampling": {"sampling_steps": 2}}
    edit = expunge.erase(held, "church", method="kpop", settings=settings)
    edit.save(folder / "edit.safetensors")
    edit.key.save(folder / "secret.safetensors")
    return folder


@pytest.fixture
def online(monkeypatch):
    """A token, and leave to ask the hub."""
    monkeypatch.setenv("HF_TOKEN", "hf_testing")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def export(made, out, *options):
    words = ["export", "--model", made / "model", "--edit", made / "edit.safetensors", "--out", out, *options]
    return main([str(word) for word in words])


def one_line(capsys):
    line = capsys.readouterr().err
    assert line.count("\n") == 1, line
    return line


def test_a_dry_run_lists_what_would_be_sent_and_asks_nobody(made, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert export(made, tmp_path / "out", "--push", "owner/name", "--dry-run", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    here = {f.relative_to(tmp_path / "out").as_posix() for f in (tmp_path / "out").rglob("*") if f.is_file()}
    assert {file["name"] for file in said["files"]} == here
    assert {"README.md", "model_index.json"} <= here
    assert all(file["bytes"] == (tmp_path / "out" / file["name"]).stat().st_size for file in said["files"])
    assert (said["repository"], said["public"], said["sent"]) == ("owner/name", False, False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--push", "owner/name"], "without a token: expected HF_TOKEN"),
        (["--push", "a/b/c"], "repository 'a/b/c'"),
        (["--push", "name-alone"], "expected owner/name"),
        (["--push", "owner/na..me", "--dry-run"], "repository 'owner/na..me'"),
        (["--dry-run"], "export with --dry-run and no repository"),
        (["--public"], "export with --public and no repository"),
    ],
)
def test_what_cannot_be_sent_is_refused_before_anything_is_written(options, words, made, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert export(made, tmp_path / "out", *options) == 2
    assert words in one_line(capsys)
    assert not (tmp_path / "out").exists()


def test_offline_nothing_is_tried(made, tmp_path, capsys, monkeypatch, online):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert export(made, tmp_path / "out", "--push", "owner/name") == 2
    assert "offline: expected HF_HUB_OFFLINE not to be set" in one_line(capsys)
    assert not (tmp_path / "out").exists()


def test_without_a_network_the_export_stays_and_a_line_says_so(made, tmp_path, capsys, online):
    """The real client; `conftest` lets it connect to no other machine."""
    assert export(made, tmp_path / "out", "--push", "owner/name") == 2
    line = one_line(capsys)
    assert "could not push to 'owner/name'" in line
    assert str(tmp_path / "out") in line
    assert (tmp_path / "out" / "model_index.json").is_file()


@pytest.mark.parametrize("name", ["key.safetensors", "unet/harmless.safetensors", "harmless.bin", "KEY", "notes.txt"])
def test_a_key_never_leaves_whatever_it_is_called(name, made, tmp_path, online):
    folder = tmp_path / "out"
    (folder / "unet").mkdir(parents=True)
    (folder / "README.md").write_text("a card")
    shutil.copy(made / "edit.safetensors", folder / "edit.safetensors")
    assert [file.name for file in publish.files(folder)] == ["README.md", "edit.safetensors"], "an edit is no secret"
    shutil.copy(made / "secret.safetensors", folder / name)
    with pytest.raises(ExpungeError, match=rf"{name}' is a private key"):
        publish.files(folder)
    with pytest.raises(ExpungeError, match="is a private key"):
        publish.push(folder, "owner/name")
    with pytest.raises(ExpungeError, match="nothing in"):
        publish.files(tmp_path / "unet")


class Hub:
    """A server on this machine in the hub's place: it writes down what it is asked, and refuses what it has no answer to."""

    def __init__(self):
        self.asked, self.answers, hub = [], {}, self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                hub.asked.append((self.path, json.loads(body or b"{}"), self.headers.get("Authorization")))
                status, answer = hub.answers.get(self.path.partition("?")[0], (403, None))
                text = b"" if answer is None else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST  # noqa: N815

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def has(self, private, *files):
        """The repository is there already."""
        siblings = [{"rfilename": name} for name in (".gitattributes", *files)]
        about = {"_id": "1", "id": "owner/name", "private": private, "siblings": siblings, "tags": [], "downloads": 0}
        there = {
            "error": "You already created this repo",
            "url": f"http://127.0.0.1:{self.server.server_port}/owner/name",
        }
        self.answers = {"/api/repos/create": (409, there), "/api/models/owner/name": (200, about)}


@pytest.fixture
def hub(monkeypatch):
    one = Hub()
    threading.Thread(target=one.server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{one.server.server_port}")
    yield one
    one.server.shutdown()
    one.server.server_close()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "out" / "unet").mkdir(parents=True)
    (tmp_path / "out" / "README.md").write_text("a card")
    (tmp_path / "out" / "unet" / "config.json").write_text("{}")
    return tmp_path / "out"


SENT = ("README.md", "unet/config.json")


@pytest.mark.parametrize(
    ("private", "public", "there", "words"),
    [
        (True, True, (), "'owner/name' is there already, and private: expected no --public"),
        (False, False, (), "'owner/name' is there already, and public: expected --public"),
        (True, False, (*SENT, "unet/old.bin"), "has 1 files that are not sent, such as 'unet/old.bin'"),
        (False, True, ("a.safetensors", "b.txt"), "has 2 files that are not sent, such as 'a.safetensors'"),
    ],
)
def test_a_repository_that_is_there_and_otherwise_is_refused_and_nothing_is_sent(
    private, public, there, words, hub, folder, online
):
    hub.has(private, *there)
    with pytest.raises(ExpungeError) as refused:
        publish.push(folder, "owner/name", public=public)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert {path for path, *_ in hub.asked if "owner/name" in path} == {"/api/models/owner/name"}, (
        "it is only looked at"
    )


@pytest.mark.parametrize("public", [False, True])
def test_a_repository_with_the_same_files_is_sent_to_again(public, hub, folder, online):
    hub.has(not public, *SENT)
    with pytest.raises(ExpungeError, match="could not push"):  # the server has no place for files
        publish.push(folder, "owner/name", public=public)
    looked = {"/api/agent-harnesses", "/api/repos/create", "/api/models/owner/name"}
    assert {path for path, *_ in hub.asked} - looked, "it was begun"


@pytest.mark.parametrize("public", [False, True])
def test_the_real_client_asks_for_a_private_repository_first(hub, public, folder, online):
    with pytest.raises(ExpungeError, match=r"could not push to 'owner/name': .*403"):
        publish.push(folder, "owner/name", public=public)
    path, body, token = next(one for one in hub.asked if one[0] != "/api/agent-harnesses")  # which the client asks once
    assert path == "/api/repos/create"
    assert token == "Bearer hf_testing"
    assert (body["name"], body["organization"]) == ("name", "owner")
    private = body.get("private", body.get("visibility") == "private")
    assert private is not public
    assert {one[0] for one in hub.asked if "owner/name" in one[0]} <= {"/api/models/owner/name"}, (
        "nothing is sent after that"
    )
