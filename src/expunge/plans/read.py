"""A plan file becomes a `Plan`."""

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from expunge import backbones
from expunge.core.catalog import Catalog
from expunge.core.errors import ExpungeError, each_once, unknown
from expunge.plans.schema import Fresh, Grid, Method, MoreImages, Named, Others, Plan, Published
from expunge.results.claims import Claim
from expunge.results.curves import Curve
from expunge.results.histograms import Histogram
from expunge.settings.layers import filled
from expunge.stages import fisher, pairs
from expunge.stages.stopping import Stop

ON = "on"
"""The table of what a plan says otherwise for models of other kinds: ``[on.sd]``, which stands for XL and 3 too."""
APART, COUNT, ROWS, DOUBLED, CALLED = "apart", "count", "rows", "doubled", "called"
"""What an attack's table says beside its settings: a run for each of its prompts, queries a prompt, the rows of the plan that
are attacked, those that are attacked with twice its budget, too, and what the table calls its settings."""


def read_plan(path: Path, model: str | None = None) -> Plan:
    """Read a plan; with another ``model`` than its own, what it says for that one's kind.

    Raises:
        ExpungeError: if it is no TOML, has an entry that plans do not have, or nothing for models of that kind.
    """
    try:
        content = tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise ExpungeError(f"no plan '{path}': expected a TOML file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ExpungeError(f"'{path}' cannot be read as TOML: {error}") from error
    missing = {"about", "set", "grid"} - set(content)
    if missing:
        raise ExpungeError(f"plan '{path}' has no '{sorted(missing)[0]}': expected about, set and [grid]")
    kinds = content.pop(ON, {})
    plan = typed(f"plan '{path}'", content)
    if not isinstance(kinds, dict):
        raise ExpungeError(f"plan '{path}' has on = {kinds!r}: expected tables [on.KIND]")
    others = {kind: _on_kind(path, plan, content, kind, said) for kind, said in kinds.items()}
    if model is None:
        return plan
    kind = backbones.kind_of(model)
    if kind == backbones.kind_of(plan.model):
        return replace(plan, model=model)
    other = others.get(kind) or (None if kind == "testbed" else others.get("sd"))
    if other is None:
        raise ExpungeError(
            f"plan '{path}' is for {plan.model}, and model '{model}' is of kind {kind}: expected a table [on.{kind}] in it, "
            "with a set and a judge that fit"
        )
    return replace(other, model=model)


def _on_kind(path: Path, plan: Plan, content: Mapping[str, Any], kind: str, said: Any) -> Plan:
    """The plan for another kind of model."""
    if kind not in backbones.KINDS:
        raise unknown(f"kind of model that plan '{path}' is on", kind, backbones.KINDS)
    if kind == backbones.kind_of(plan.model):
        raise ExpungeError(f"plan '{path}' has [on.{kind}], and is for {plan.model}: expected another kind of model")
    if not isinstance(said, dict) or "about" not in said or "model" in said:
        raise ExpungeError(f"plan '{path}' on {kind}: expected a table with an about of its own, and no model")
    return typed(f"plan '{path}' on {kind}", _merged(content, said))


def _merged(content: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """A plan with what ``said`` replaces, methods one by one; an empty table goes back to the default.

    Its own figures lose their notes, which are of the testbed.
    """
    merged = {**content, **{key: value for key, value in said.items() if value != {}}}
    for key in said:
        if said[key] == {}:
            merged.pop(key, None)
    own, other = content.get("method"), said.get("method")
    if isinstance(own, dict) and isinstance(other, dict) and other:
        merged["method"] = {**own, **other}
    for drawn in ("figures", "histograms"):
        kept = content.get(drawn, ()) if drawn not in said else ()
        if kept and all(isinstance(figure, dict) for figure in kept):
            merged[drawn] = [{**figure, "note": said["about"]} for figure in kept]
    return merged


# tables become types --------------------------------------------------------------------------------------------------
def typed(what: str, content: Mapping[str, Any]) -> Plan:
    """The plan of these tables; ``what`` names it in errors.

    Raises:
        ExpungeError: for an entry that plans do not have, or a value of the wrong kind.
    """
    entries = {name: READERS[name](value) if name in READERS else value for name, value in content.items()}
    plan: Plan = filled(Plan, what, entries)
    return replace(plan, source=dict(content))


def several(value: Any) -> Any:
    """A list of one or more."""
    return list(value) if isinstance(value, list | tuple) else [value]


def words_of(what: str, value: Any) -> tuple[str, ...]:
    """One word or several."""
    words = several(value)
    if not words or any(not isinstance(word, str) or not word.strip() for word in words):
        raise ExpungeError(f"plan's {what} is {value!r}: expected one word or a list of words")
    return each_once(f"plan's {what}", words)


def _table(cls: type, what: str) -> Callable[[Any], Any]:
    """Reads a table."""
    return lambda value: None if value is None else filled(cls, what, value)


def _tables(cls: type, what: str) -> Callable[[Any], Any]:
    """Reads a list of tables."""
    return lambda value: [filled(cls, what, table) for table in value] if isinstance(value, list | tuple) else value


def _by_name(read: Callable[[str, Any], Any]) -> Callable[[Any], Any]:
    """Reads tables by name."""
    return lambda value: {k: read(k, v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _named(kind: str) -> Callable[[Any], Any]:
    """Reads a list of plug-ins: each a name, or a table with a name and settings."""
    return lambda value: [_plug_in(kind, entry) for entry in value] if isinstance(value, list | tuple) else value


def _plug_in(kind: str, entry: Any) -> Named:
    if not isinstance(entry, str | dict):
        raise ExpungeError(f"plan's {kind} name {entry!r}: expected a name, or a table with a name and settings")
    settings = {"name": entry} if isinstance(entry, str) else dict(entry)
    name = str(settings.pop("name", ""))
    shown = settings
    if kind == "attacks":  # how it is run, and what it asks, do not tell it from others; a file does by its name
        files = Catalog(kind).literals("files").get(name, ())
        shown = {
            k: Path(str(v)).name if k in files else v
            for k, v in settings.items()
            if k not in (APART, COUNT, ROWS, DOUBLED) and not isinstance(v, list | dict) and "{}" not in str(v)
        }
    variant = ", ".join(f"{k} {v}" for k, v in shown.items())
    if kind == "attacks" and CALLED in settings:
        variant = _called(name, settings.pop(CALLED))
    return Named(name, settings, f" ({variant})" if variant else "")


def _called(name: str, value: Any) -> str:
    """What a plan calls the settings of an attack; nothing where it is empty."""
    if not isinstance(value, str) or re.search(r"[(),|\n]", value):
        raise ExpungeError(f"attack '{name}' with called {value!r}: expected words without brackets or commas, or none")
    return value.strip()


def _grid(value: Any) -> Grid:
    if isinstance(value, Mapping):
        value = {axis: several(places) for axis, places in value.items()}
    return filled(Grid, "plan's grid", value)


def _method(name: str, value: Any) -> Method:
    if isinstance(value, Mapping) and value.get("stop") is not None:
        value = {**value, "stop": filled(Stop, f"stop of method '{name}'", value["stop"])}
    method: Method = filled(Method, f"method '{name}'", value)
    if not (method.eraser or method.edits or method.model):
        raise ExpungeError(f"method '{name}' has no 'eraser': expected one, finished edits, or another model")
    for alone, what in (("edits", "finished edits"), ("model", "a model")):
        if getattr(method, alone) and set(value) != {alone}:
            other = min(set(value) - {alone})
            raise ExpungeError(f"method '{name}' has {what} and {other}: expected nothing beside the {alone}")
    return method


def _more_images(value: Any) -> Any:
    if isinstance(value, Mapping) and value.get("metrics") is not None:
        value = {**value, "metrics": _named("metrics")(value["metrics"])}
    return filled(MoreImages, "plan's also", value)


def _pairs(name: str, value: Any) -> pairs.Wish:
    """Pairs; with ``phrases``, every unsafe thing is redrawn as every safe one in every phrase."""
    if isinstance(value, Mapping) and "phrases" in value:
        templates = words_of(f"pairs '{name}' phrases", value["phrases"])
        unsafe, safe = (words_of(f"pairs '{name}' {role}", value.get(role, [])) for role in pairs.ROLES)
        rest = {key: entry for key, entry in value.items() if key != "phrases"}
        value = {**rest, **pairs.crossed(templates, unsafe, safe)._asdict()}
    return filled(pairs.Wish, f"pairs '{name}'", value)


READERS: Mapping[str, Callable[[Any], Any]] = {
    "grid": _grid,
    "splits": _by_name(lambda name, value: words_of(f"split '{name}'", value)),
    "words": _by_name(lambda name, value: words_of(f"words of '{name}'", value)),
    "method": _by_name(_method),
    "pairs": _by_name(_pairs),
    "fisher": _by_name(lambda name, value: filled(fisher.Wish, f"fisher '{name}'", value)),
    "metrics": _named("metrics"),
    "analyses": _named("analyses"),
    "attacks": _named("attacks"),
    "fresh": _table(Fresh, "plan's fresh"),
    "others": _table(Others, "plan's others"),
    "also": lambda value: [_more_images(v) for v in value] if isinstance(value, list | tuple) else value,
    "paper": _table(Published, "plan's paper"),
    "claims": _tables(Claim, "plan's claim"),
    "figures": _tables(Curve, "plan's figure"),
    "histograms": _tables(Histogram, "plan's histogram"),
}
"""How an entry that is not a plain value is read."""
