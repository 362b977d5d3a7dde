"""`expunge serve`: one line and exit 2 for what cannot be, a token where others can ask, no file given away."""

import socket
import sys

import pytest

from expunge.cli import main
from expunge.core.errors import ExpungeError
from expunge.web import server


def refused(words, capsys):
    """The one line that a command says instead of serving."""
    assert main(["serve", *map(str, words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_folder_that_is_none_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "cannot be served" in refused([tmp_path / "file"], capsys)
    assert "cannot be served" in refused([tmp_path / "no" / "folder"], capsys)


def test_a_port_that_is_taken_is_refused(tmp_path, capsys):
    pytest.importorskip("gradio")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        line = refused([tmp_path / "runs", "--port", other.getsockname()[1]], capsys)
    assert "expected another --port (0 finds a free one)" in line
    assert "expected 0 to 65535" in refused([tmp_path / "runs", "--port", "70000"], capsys)
    assert "cannot be had" in refused([tmp_path / "runs", "--host", "203.0.113.7"], capsys)


def test_without_gradio_the_extra_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert refused([tmp_path / "runs", "--port", "0"], capsys).endswith("expected expunge[web]")


@pytest.mark.parametrize("token", ["short", "sixteen letters;", "x" * 15])
def test_a_token_that_could_be_guessed_or_not_kept_is_refused(token):
    with pytest.raises(ExpungeError, match="expected 16 or more plain letters and digits"):
        server.address("127.0.0.1", 0, token)


def test_others_need_a_token_and_this_machine_does_not(monkeypatch):
    monkeypatch.delenv("EXPUNGE_TOKEN", raising=False)
    here, open_, again = (server.address(host, 0, None) for host in ("127.0.0.1", "0.0.0.0", "0.0.0.0"))
    asked = server.address("localhost", 0, "a" * 16)
    monkeypatch.setenv("EXPUNGE_TOKEN", "b" * 16)
    hidden = server.address("127.0.0.1", 0, None)
    for address in (here, open_, again, asked, hidden):
        address.socket.close()
    assert here.token == ""
    assert here.url == f"http://127.0.0.1:{here.port}/"
    assert len(open_.token) == 48
    assert open_.token != again.token
    assert open_.url.endswith(f"?token={open_.token}")
    assert (asked.token, hidden.token) == ("a" * 16, "b" * 16)
    assert "evil.example" not in here.names
    assert open_.names == frozenset()


def test_gradio_itself_gives_no_file_away(finished):
    """Its own route for files, without the guard before it: neither the private key nor anything else."""
    pytest.importorskip("gradio")
    from fastapi.testclient import TestClient

    (key,) = finished.served.store.glob("erase-*/key.safetensors")
    with TestClient(server.application(finished.desk), base_url="http://127.0.0.1") as client:
        for file in (key, key.parent / "edit.safetensors", finished.served.root / finished.uce / "plan.toml", __file__):
            answer = client.get(f"/gradio_api/file={file}")
            assert answer.status_code == 403, file
        assert client.get(f"/report/{finished.uce}").status_code == 200
        for name in ("web/none", "store/x", "web/..%2f..%2fstore", finished.uce + "/plan.toml"):
            answer = client.get(f"/report/{name}")
            assert answer.status_code == 404
        held = key.read_bytes()[-64:].hex()
        for page in (client.get("/").text, client.get("/config").text, finished.desk.report(finished.kpop)):
            assert held not in page
            assert str(finished.served.root) not in page
