"""The page itself, in Gradio: it asks the `Desk` for all that it shows and does."""

import html
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from expunge.core.errors import ExpungeError
from expunge.web import forms, wishes
from expunge.web.desk import Desk
from expunge.web.forms import Field
from expunge.web.served import TESTBED
from expunge.web.wishes import Wish

CSS = (Path(__file__).parent / "templates" / "page.css").read_text(encoding="utf-8")
EVERY = 1.5
"""Seconds between two looks at a run's files."""
FIRST = {"erasers": "uce", "attacks": "concept-inversion", "concept": "church"}
TOP = "<div class='xp-top'><h1>expunge</h1><p>Remove a concept from a model, look, attack, report.</p></div>"
ADDRESS = "(name) => { if (name) history.replaceState(null, '', '?run=' + encodeURIComponent(name)); }"
"""Puts the run into the browser's address, so that a reload shows it again."""
ALONE: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "settings"}
"""One form at a time: two that Gradio renders at once change the list of components under each other (6.31)."""
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


def theme() -> Any:
    """Gradio's own look with the system's fonts: none is fetched."""
    fonts: dict[str, Any] = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    seen: dict[str, Any] = {  # Gradio's own are too pale to be read by everybody
        "body_text_color_subdued": "#5d6069",
        "body_text_color_subdued_dark": "#a9adb6",
        "block_info_text_color": "#5d6069",
        "block_info_text_color_dark": "#a9adb6",
        "button_primary_background_fill": "#0b6e63",
        "button_primary_background_fill_hover": "#095a51",
        "button_primary_background_fill_dark": "#0b6e63",
    }
    return gr.themes.Default(primary_hue="teal", neutral_hue="zinc", **fonts).set(**seen)


def said(line: str = "", good: bool = False) -> str:
    """A line for whoever sits before the page."""
    return f"<p class='xp-said {'xp-good' if good else 'xp-bad'}' role='alert'>{html.escape(line)}</p>" if line else ""


def in_place(line: str) -> gr.HTML:
    """That line in its place, which is not there without one."""
    return gr.HTML(line, visible=bool(line))


def page(desk: Desk) -> gr.Blocks:
    """The page of a served folder."""

    def opened(request: gr.Request) -> tuple[Any, Any, Any]:  # Gradio hands a request to what is annotated so
        return _opened(desk, str(dict(request.query_params).get("run", "")))

    with gr.Blocks(title="expunge", analytics_enabled=False) as blocks:
        gr.HTML(TOP)
        run = gr.Textbox(visible=False, elem_id="run")
        with gr.Tabs(selected="erase") as tabs:
            with gr.Tab("Erase", id="erase"):
                begun = _erase(desk, run, tabs)
            with gr.Tab("Run", id="run"):
                views = _run(desk, run, tabs)
            with gr.Tab("Runs", id="runs") as gallery_tab:
                gallery = gr.HTML()
            with gr.Tab("Compare", id="compare") as compare_tab:
                _compare(desk, compare_tab)
        gallery_tab.select(desk.gallery, None, gallery, **QUIET)
        blocks.load(opened, None, [run, tabs, begun], **QUIET).then(*views, **QUIET)
        run.change(None, run, None, js=ADDRESS)
    return blocks


def _opened(desk: Desk, asked: str) -> tuple[Any, Any, Any]:
    """What a visitor sees first: the run of the address, or what is going on, or the form if there is none."""
    try:
        name = desk.opened(asked)
    except ExpungeError as error:
        return "", gr.Tabs(selected="erase"), in_place(said(str(error)))
    going = name if asked or desk.runner.running() else ""
    return name, gr.Tabs(selected="run" if going else "erase"), in_place("")


def _try(act: Callable[[], str]) -> tuple[str | None, str]:
    """What an act gives, or the line that says why it cannot be."""
    try:
        return act(), ""
    except ExpungeError as error:
        return None, said(" ".join(str(error).split()))


# erase ----------------------------------------------------------------------------------------------------------------
def _erase(desk: Desk, run: gr.Textbox, tabs: gr.Tabs) -> gr.HTML:
    """The form of an erasure."""
    methods = forms.plug_ins("erasers")
    concepts, first = wishes.concepts(), FIRST["concept"]
    with gr.Row():
        model = gr.Dropdown(
            desk.served.models(), value=TESTBED, label="Model", info="The testbed, or a folder of yours"
        )
        concept = gr.Dropdown(
            concepts, value=first, label="Concept", info="What should be gone", allow_custom_value=True
        )
    near = wishes.neighbours(first)
    keep = gr.Dropdown(
        sorted({*concepts, *near}),
        value=near,
        label="Keep",
        info="What is looked at beside it",
        multiselect=True,
        allow_custom_value=True,
    )
    with gr.Row():
        told = gr.Checkbox(True, label="Tell the method to keep these")
        count = gr.Slider(wishes.COUNTS[0], wishes.COUNTS[-1], value=4, step=1, label="Images of each concept")
        judge = gr.Dropdown(_judges(), value="none", label="Judge", info="Who looks at the images", visible=False)
    method = _plug_in(methods, FIRST["erasers"], "Method")
    said_here = gr.HTML(visible=False)
    model.change(lambda m: gr.Dropdown(visible=not _known(desk, m)), model, judge, **QUIET)
    concept.change(lambda c, m: wishes.neighbours(c) if _known(desk, m) else gr.skip(), [concept, model], keep, **QUIET)

    @gr.render(inputs=method, **ALONE)
    def settings(name: str) -> None:
        words = _settings("erasers", name)
        start = gr.Button("Erase", variant="primary", elem_id="start")
        chosen = [model, concept, keep, told, count, judge, method]

        def erase(m: str, c: str, k: list[str], t: bool, n: int, j: str, e: str, *typed: str) -> tuple[Any, Any, Any]:
            wish = Wish(
                model=m or "",
                concept=c or "",
                keep=k or [],
                told=t,
                count=int(n or 0),
                judge=j,
                method=e or "",
                words=_given(words, typed),
            )
            name, line = _try(lambda: desk.erase(wish))
            return (
                (gr.skip(), gr.skip(), in_place(line))
                if name is None
                else (name, gr.Tabs(selected="run"), in_place(""))
            )

        start.click(erase, [*chosen, *words.values()], [run, tabs, said_here], **QUIET)

    return said_here


def _judges() -> list[tuple[str, str]]:
    return [(f"{name}: {about}", name) for name, about in wishes.JUDGES.items()]


def _plug_in(plug_ins: Mapping[str, str], first: str, label: str) -> gr.Dropdown:
    """A choice of plug-ins, with a line on the one that is chosen."""
    chosen = gr.Dropdown(list(plug_ins), value=first, label=label, info=plug_ins[first])
    chosen.change(lambda name: gr.Dropdown(info=plug_ins.get(name, "")), chosen, chosen, **QUIET)
    return chosen


def _known(desk: Desk, model: str) -> bool:
    """Whether a model is the testbed's kind, whose words and judge are known."""
    try:
        return desk.served.is_testbed(desk.served.check_model(model))
    except ExpungeError:
        return False


# settings -------------------------------------------------------------------------------------------------------------
def _settings(kind: str, name: str) -> dict[str, Any]:
    """The settings of a plug-in, each with its help; by their names."""
    try:
        fields = forms.fields(kind, name)
    except ExpungeError as error:
        gr.HTML(said(str(error)))
        return {}
    with gr.Accordion(f"Settings of {name}", open=False), gr.Row():
        return {field.name: _setting(field) for field in fields}


def _setting(field: Field) -> Any:
    label: dict[str, Any] = {"label": field.name, "info": field.help, "min_width": 280}
    if field.choices:
        return gr.Dropdown([("as it is", ""), *((choice, choice) for choice in field.choices)], value="", **label)
    return gr.Textbox(
        placeholder="one a line" if field.several else "as it is", lines=2 if field.several else 1, **label
    )


def _given(words: Mapping[str, Any], typed: tuple[str, ...]) -> dict[str, str]:
    return {name: text or "" for name, text in zip(words, typed, strict=True)}


# a run ----------------------------------------------------------------------------------------------------------------
def _run(desk: Desk, run: gr.Textbox, tabs: gr.Tabs) -> tuple[Any, Any, Any]:
    """A run: where it stands, its images and numbers, and what can be done with it. What shows it, for other events."""
    progress, said_here = gr.HTML(), gr.HTML(visible=False)
    with gr.Row():
        cancel = gr.Button("Cancel", variant="stop", visible=False, elem_id="cancel")
        again = gr.Button("Go on", visible=False, elem_id="again")
    numbers = gr.HTML(elem_id="numbers")
    seen = gr.State("")
    with gr.Accordion("Attack it", open=False, visible=False, elem_id="attacks") as attacks:
        attack = _plug_in(forms.plug_ins("attacks"), FIRST["attacks"], "Attack")

        @gr.render(inputs=attack, **ALONE)
        def settings(name: str) -> None:
            words = _settings("attacks", name)
            start = gr.Button("Attack", variant="primary", elem_id="attack")

            def begin(of: str, which: str, *typed: str) -> gr.HTML:
                return in_place(_try(lambda: desk.attack(of, which, _given(words, typed)))[1])

            start.click(begin, [run, attack, *words.values()], said_here, **QUIET)

    images = gr.HTML(elem_id="images")
    shows = [progress, images, numbers, cancel, again, attacks, seen]
    look: Any = (partial(_look, desk), [run, seen], shows)
    gr.Timer(EVERY).tick(*look, **QUIET)
    run.change(*look, **QUIET)
    cancel.click(lambda name: in_place(_try(lambda: desk.cancel(name) or "")[1]), run, said_here, **QUIET)
    again.click(lambda name: in_place(_try(lambda: desk.go_on(name))[1]), run, said_here, **QUIET)
    return look


def _look(desk: Desk, name: str, seen: str) -> tuple[Any, ...]:
    """A run as it is now; images and numbers only if they have changed, so that what was uncovered stays so."""
    if not name:
        nothing = "<p class='xp-note'>No run yet: erase something.</p>"
        return nothing, "", "", *(gr.update(visible=False) for _ in range(3)), ""
    try:
        at = desk.standing(name)
        images, numbers = desk.images(name), desk.numbers(name) if at.state == "finished" else ""
    except ExpungeError as error:
        return said(str(error)), "", "", *(gr.update(visible=False) for _ in range(3)), ""
    digest = f"{name} {hash(images)} {hash(numbers)}"
    shown = (gr.skip(), gr.skip()) if digest == seen else (images, numbers)
    ended = at.state in ("finished", "stopped")
    buttons = (at.state == "running", desk.ours(name) and at.state in ("stopped", "ready"), desk.erases(name) and ended)
    return desk.progress(at), *shown, *(gr.update(visible=one) for one in buttons), digest


# two edits ------------------------------------------------------------------------------------------------------------
def _compare(desk: Desk, tab: gr.Tab) -> None:
    """Two edits side by side, with a slider of strength."""
    with gr.Row():
        left = gr.Dropdown([], label="One run", elem_id="left")
        right = gr.Dropdown([], label="Another of the same concept", elem_id="right")
        count = gr.Slider(wishes.COUNTS[0], 8, value=2, step=1, label="Images of each concept")
    start = gr.Button("Make their images", variant="primary", elem_id="compare-start")
    said_here = gr.HTML(visible=False)
    which = gr.Dropdown([], label="Comparison", elem_id="which")
    strength = gr.Slider(
        0.0, 1.0, value=1.0, step=0.25, label="Strength", info="0 is the model as it is", elem_id="strength"
    )
    progress, pairs = gr.HTML(), gr.HTML(elem_id="pairs")
    seen = gr.State("")

    def choices() -> tuple[Any, ...]:
        runs, made = desk.erasures(), desk.comparisons()
        two = [*runs[:2], None, None]
        return (
            gr.Dropdown(runs, value=two[0]),
            gr.Dropdown(runs, value=two[1]),
            gr.Dropdown(made, value=next(iter(made), None)),
        )

    def begin(one: str | None, other: str | None, n: int) -> tuple[Any, Any]:
        name, line = _try(lambda: desk.compare([one or "", other or ""], int(n or 0)))
        return (gr.skip() if name is None else gr.Dropdown(desk.comparisons(), value=name)), in_place(line)

    def look(name: str | None, at: float, before: str) -> tuple[Any, Any, str]:
        if not name:
            return "", "", ""
        try:
            stands, images = desk.progress(desk.standing(name)), desk.compared(name, at)
        except ExpungeError as error:
            return said(str(error)), "", ""
        digest = f"{name} {hash(images)}"
        return stands, gr.skip() if digest == before else images, digest

    tab.select(choices, None, [left, right, which], **QUIET)
    start.click(begin, [left, right, count], [which, said_here], **QUIET)
    shows: Any = (look, [which, strength, seen], [progress, pairs, seen])
    gr.Timer(EVERY).tick(*shows, **QUIET)
    for changed in (which, strength):
        changed.change(*shows, **QUIET)
