"""Forms are made of what plug-ins say of themselves, and what is typed becomes the settings that the command line makes."""

import tomllib

import pytest

from expunge.core.catalog import Catalog
from expunge.core.errors import ExpungeError
from expunge.settings.described import described
from expunge.stages import attack, erase
from expunge.store.toml import toml
from expunge.web import forms

EVERY = [(kind, name) for kind in ("erasers", "attacks") for name in forms.plug_ins(kind)]


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_a_form_has_every_setting_with_its_help(kind, name):
    entry = Catalog(kind).entry(name)
    options = [o for group in described(entry.module, entry.class_name) for o in group.options]
    fields = forms.fields(kind, name)
    assert [field.name for field in fields] == [".".join(o.path) for o in options]
    assert all(field.help.strip() for field in fields), [field.name for field in fields if not field.help.strip()]


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_defaults_that_are_typed_are_the_defaults(kind, name, served):
    """Each plain default, typed as it is shown, makes a plug-in with the same settings."""
    entry = Catalog(kind).entry(name)
    options = [o for group in described(entry.module, entry.class_name) for o in group.options]
    typed = {".".join(o.path): words for o in options if (words := _typed(o.default))}
    given = tomllib.loads(toml(forms.settings(kind, name, typed, served)))
    build = erase.build if kind == "erasers" else attack.build
    assert build(name, given, None) == build(name, {}, None)


def _typed(value):
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple | list):
        return "\n".join(map(str, value))
    return str(value) if isinstance(value, str | int | float) else ""


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ({"lamb": "much"}, "uce's lamb is 'much': expected a number"),
        ({"lamb": "nan"}, "lamb"),
        ({"lam": "1"}, "uce has no setting 'lam'"),
        ({"preserve_empty": "maybe"}, "expected yes or no"),
        ({"templates": "x" * 20_000}, "at most 10,000"),
    ],
)
def test_what_is_no_value_is_refused_by_name(words, line, served):
    with pytest.raises(ExpungeError, match=line):
        forms.settings("erasers", "uce", words, served)


def test_a_file_that_a_setting_names_must_be_within(served):
    for path in ("/etc/passwd", "../fisher.safetensors"):
        with pytest.raises(ExpungeError, match="within the served folder"):
            forms.settings("erasers", "selective-amnesia", {"fisher": path}, served)
    given = forms.settings("erasers", "selective-amnesia", {"fisher": "fisher.safetensors"}, served)
    assert given == {"fisher": "fisher.safetensors"}


def test_a_folder_that_a_setting_may_name_must_be_within(served):
    """A CLIP is a name or a folder; what looks like a path, or is there, is taken for one."""
    (served.root / "out").symlink_to("/etc")
    for path in ("/srv/clip", "../clip", "out", "a/../../b"):
        with pytest.raises(ExpungeError, match="the served folder"):
            forms.settings("attacks", "sneaky-prompt", {"clip": path}, served)
    (served.root / "clip").mkdir()
    for path in ("clip", "openai/clip-vit-base-patch32", "testbed"):
        assert forms.settings("attacks", "sneaky-prompt", {"clip": path}, served) == {"clip": path}


def test_weights_that_a_judge_is_named_with_must_be_within(served):
    with pytest.raises(ExpungeError, match="within the served folder"):
        forms.settings("attacks", "unlearn-diff-atk", {"oracle": "imagenet:weights=/etc/passwd"}, served)
    assert forms.settings("attacks", "unlearn-diff-atk", {"oracle": "testbed:network=b"}, served)


def test_lines_are_several_values_and_empty_ones_none(served):
    given = forms.settings("erasers", "uce", {"templates": "a {}\n\nthe {}\n", "lamb": " "}, served)
    assert given == {"templates": ["a {}", "the {}"]}


@pytest.mark.parametrize(
    "table",
    [
        {"a": 'quote " and \\ and \n line \x7f \x01 é 教 \U0001f600', "b": [1, -2.5, 1e-9, True, "x"], "c": []},
        {"t": {"u v": {"w": 1}}, "empty": {}, "many": [{"name": "x", "deep": {"k": [0.5]}}, {}]},
    ],
)
def test_toml_is_read_back_as_it_was(table):
    assert tomllib.loads(toml(table)) == table
