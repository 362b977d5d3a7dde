"""Nothing outside the served folder is reached, whatever is typed and wherever links lead."""

import pytest

from expunge.core.errors import ExpungeError
from expunge.web.served import Served


@pytest.mark.parametrize("text", ["../secret", "/etc/passwd", "web/../../secret", "", " ", "a\0b", "..", "web/.."])
def test_a_path_that_leads_out_is_refused(served, text):
    with pytest.raises(ExpungeError, match="expected one within the served folder"):
        served.inside(text)


def test_a_link_that_leads_out_is_refused_and_one_within_is_not(served, tmp_path):
    (tmp_path / "secret").mkdir()
    (served.root / "out").symlink_to(tmp_path / "secret")
    (served.root / "models").mkdir()
    (served.root / "in").symlink_to(served.root / "models")
    with pytest.raises(ExpungeError, match="leads out of the served folder"):
        served.inside("out/file")
    assert served.inside("in/file") == served.root / "models" / "file"
    (served.root / "loop").symlink_to(served.root / "loop")
    with pytest.raises(ExpungeError):
        served.inside("loop/x")


@pytest.mark.parametrize(
    "name", ["church", "web", "web/", "web/../store", "store/x", "web/.hidden", "web/a/b", "other/a"]
)
def test_a_name_that_is_no_run_s_is_refused(served, name):
    (served.root / "web" / "a" / "b").mkdir(parents=True)
    (served.root / "web" / ".hidden").mkdir()
    (served.root / "store" / "x").mkdir(parents=True)
    with pytest.raises(ExpungeError, match="expected web/NAME or bench/NAME"):
        served.run(name)


def test_a_run_that_is_a_link_out_is_neither_shown_nor_opened(served, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "plan.toml").write_text("about = 'x'")
    (served.root / "web").mkdir()
    (served.root / "web" / "link").symlink_to(tmp_path / "elsewhere")
    assert served.runs() == []
    with pytest.raises(ExpungeError, match="leads out"):
        served.run("web/link")


def test_models_are_the_testbed_and_the_diffusers_folders_below(served, tmp_path, folder):
    (served.root / "models").mkdir()
    (served.root / "models" / "mine").symlink_to(folder)  # a link out is not followed
    own = served.root / "models" / "own"
    own.mkdir()
    (own / "model_index.json").write_text("{}")
    marked = served.root / "church" / "model"
    marked.mkdir(parents=True)
    (marked / "model_index.json").write_text("{}")
    (marked / "expunge.json").write_text('{"kind": "testbed"}')
    assert served.models() == ["testbed", "./church/model", "./models/own"]
    assert served.is_testbed("./church/model")
    assert not served.is_testbed("./models/own")
    for model in ("./models/mine", "stable-diffusion-v1-5/stable-diffusion-v1-5", "../x", "./church"):
        with pytest.raises(ExpungeError):
            served.check_model(model)


def test_new_runs_have_plain_names_of_their_own(served):
    assert served.new_run("Church <b>uce</b>/../x") == "web/church-b-uce-b-x"
    assert served.new_run("church uce") == "web/church-uce"
    assert served.new_run("church uce") == "web/church-uce-2"
    assert served.new_run("教会") == "web/run"


def test_a_folder_that_is_none_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "no" / "folder"):
        with pytest.raises(ExpungeError, match="cannot be served"):
            Served.opened(folder)
