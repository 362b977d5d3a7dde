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


@pytest.mark.parametrize("name", ["key.safetensors", "unet/harmless.safetensors"])
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


@pytest.fixture
def refusing(monkeypatch):
    """A server on this machine in the hub's place that writes down what it is asked, and refuses it."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append((self.path, json.loads(body or b"{}"), self.headers.get("Authorization")))
            self.send_response(403)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("public", [False, True])
def test_the_real_client_asks_for_a_private_repository_first(refusing, public, tmp_path, online):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "README.md").write_text("a card")
    with pytest.raises(ExpungeError, match=r"could not push to 'owner/name': .*403"):
        publish.push(folder, "owner/name", public=public)
    path, body, token = refusing[0]
    assert path == "/api/repos/create"
    assert token == "Bearer hf_testing"
    assert (body["name"], body["organization"]) == ("name", "owner")
    private = body.get("private", body.get("visibility") == "private")
    assert private is not public
    assert {one[0] for one in refusing} <= {path, "/api/models/owner/name"}, "nothing is sent after that"
