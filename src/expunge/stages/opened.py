"""A plan with all that it names opened and checked, before anything runs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from expunge import backbones
from expunge.core.catalog import Catalog
from expunge.core.concept import Concept, ConceptSet, Part, check_targets
from expunge.core.eraser import Eraser, settings_of
from expunge.core.errors import ExpungeError, check_counts, check_positive, each_once, unknown
from expunge.results.claims import Claim
from expunge.results.curves import Curve
from expunge.results.files import figure_file
from expunge.results.histograms import Histogram
from expunge.settings.layers import filled
from expunge.stages import erase, pairs
from expunge.stages.plan import (
    ASKED,
    ATTACK,
    CONTROLS,
    GROUPS,
    KEYLESS,
    KINDS,
    ORIGINAL,
    Also,
    Fresh,
    Further,
    Grid,
    Method,
    Others,
    Plan,
    Published,
    planned_analysis,
    planned_attack,
    planned_metric,
    planned_pairs,
    precision_of,
    several,
    words_of,
)
from expunge.store import read_lines, read_set
from expunge.testbed import CONCEPTS

RUNS = 1_000
"""How far apart the draws and seeds of an attack's runs are."""


class Opened:
    """A plan's grid, methods, sets, metrics, attacks, analyses, pairs and claims, none of them in contradiction."""

    def __init__(self, plan: Plan) -> None:
        """Check ``plan`` whole.

        Raises:
            ExpungeError: for an unknown method, eraser, metric, setting, set or split, or what does not go together.
        """
        self.plan = plan
        self._kind = backbones.kind_of(plan.model)
        self._open_grid()
        self._open_set()
        self._open_claims()
        self._open_attacks()
        self.metrics = [planned_metric(entry) for entry in plan.metrics]
        self.analyses = [planned_analysis(entry) for entry in plan.analyses]
        each_once("plan's metrics", [(m.name, m.settings) for m in self.metrics])
        each_once("plan's analyses", [(a.name, settings_of(a.analysis)) for a in self.analyses])
        self.pairs = {name: planned_pairs(name, table) for name, table in plan.pairs.items()}
        for wish in self.pairs.values():
            pairs.judge_of(wish, self._kind)
        self._open_further()
        self._check_labels()
        self._check_histograms()
        self.image_dtype = backbones.fast_dtype() if plan.image_dtype == "fast" else plan.image_dtype
        self._open_erasers()

    def _open_grid(self) -> None:
        """The grid and its methods."""
        plan = self.plan
        check_counts("plan", count=plan.count, control_count=plan.control_count, attack_runs=plan.attack_runs)
        if plan.steps is not None:
            check_counts("plan", steps=plan.steps)
        if plan.guidance is not None:
            check_positive("plan", guidance=plan.guidance)
        self.grid: Grid = filled(Grid, "plan's grid", {k: several(v) for k, v in plan.grid.items()})
        for axis in ("method", "split", "seed"):
            each_once(f"plan's grid's {axis}", getattr(self.grid, axis))
        if plan.attacks and max(self.grid.seed) - min(self.grid.seed) >= RUNS:
            raise ExpungeError(
                f"attacks with training seeds {list(self.grid.seed)}: expected them within {RUNS} of each other"
            )
        self.methods: dict[str, Method] = {
            name: filled(Method, f"method '{name}'", table) for name, table in plan.method.items()
        }
        for name in self.grid.method:
            if name != ORIGINAL and precision_of(name) is None and name not in self.methods:
                raise unknown("method of the plan", name, [ORIGINAL, *self.methods])
        for name in self.methods:
            if name in (ORIGINAL, *CONTROLS, *ASKED) or precision_of(name) is not None:
                raise ExpungeError(f"a method is called '{name}': expected another name than original or a control's")

    def _open_set(self) -> None:
        """The set of concepts, its splits, and the words that erasers are told."""
        plan = self.plan
        self.set: ConceptSet = read_set(plan.set, CONCEPTS)
        given = {name: words_of(f"split '{name}'", concepts) for name, concepts in plan.splits.items()}
        self.splits = given or self.set.splits or {"all": self.set.concepts}
        for name, concepts in {**self.splits, plan.set: self.set.concepts}.items():
            each_once(f"plan's split '{name}'" if name in self.splits else f"set '{name}'", concepts)
        self.words = {concept: words_of(f"words of '{concept}'", words) for concept, words in plan.words.items()}
        for concept in [*(c for targets in self.splits.values() for c in targets), *self.words]:
            if concept not in self.set.concepts:
                raise unknown(f"concept of {plan.set}", concept, self.set.concepts)
        for name in self.grid.split:
            if name not in self.splits:
                raise unknown(f"split of {plan.set}", name, self.splits)
        self._part(plan.set, self.set)

    def _open_claims(self) -> None:
        """What the table is compared with and drawn as: published rows, pairs of rows, claims, figures."""
        plan = self.plan
        self.published = [] if plan.paper is None else self._published(plan.paper)
        for pair in each_once("plan's compare", plan.compare):
            if len(pair) != 2:
                raise ExpungeError(f"plan's compare names {list(pair)}: expected pairs of methods")
            for name in pair:
                if name not in self.grid.method:
                    raise unknown("method of the grid to compare", name, self.grid.method)
        self.claims: list[Claim] = [filled(Claim, "plan's claim", entry) for entry in plan.claims]
        self.figures: list[Curve] = [filled(Curve, "plan's figure", entry) for entry in plan.figures]
        self.histograms: list[Histogram] = [filled(Histogram, "plan's histogram", entry) for entry in plan.histograms]
        for named in (*self.claims, *self.figures, *self.histograms):
            named.check(self.grid.method)
        files = [figure_file(figure.title) for figure in (*self.figures, *self.histograms)]
        for name in files:
            if files.count(name) > 1:
                raise ExpungeError(f"two figures of the plan would be '{name}': expected titles that differ in words")

    def _open_attacks(self) -> None:
        """The attacks, which claims and figures may name."""
        self.attacks = [planned_attack(entry, self._kind, self.plan.attack_runs) for entry in self.plan.attacks]
        called = [f"{a.name}{a.variant}" for a in self.attacks]
        asked = [claim.group for claim in self.claims]
        asked += [group for curve in self.figures for group in (curve.x_group, *(line.group for line in curve.read))]
        for group in asked:
            if group.startswith(ATTACK) and group.removeprefix(ATTACK) not in called:
                raise unknown("attack of the plan in a claim or figure", group.removeprefix(ATTACK), called)
        for name in called:
            if called.count(name) > 1:
                raise ExpungeError(
                    f"two attacks of the plan are both '{name}' in the table: expected settings that tell them apart"
                )

    def _open_further(self) -> None:
        """Further sets of prompts."""
        self.further = [] if self.plan.others is None else [self._others(self.plan.others)]
        self.further += [self._also(entry) for entry in self.plan.also]
        names = [f.group for f in self.further]
        for name in names:
            if names.count(name) > 1:
                raise ExpungeError(f"two further sets of the plan are called '{name}': expected each once")

    def _open_erasers(self) -> None:
        """The methods' erasers, and what learns fresh keys."""
        plan, kind = self.plan, self._kind
        self.erasers = {
            n: erase.build(m.eraser, m.settings, kind if m.preset else None) for n, m in self.methods.items()
        }
        self._check_pairs()
        for name, eraser in self.erasers.items():  # which refuse targets that they lack something for
            if self.methods[name].images is None:
                for split in self.grid.split or self.splits:
                    eraser.needs([Concept(name=word) for word in self.told(self.splits[split])])
        asked = any("fresh" in (m.controls or ()) for m in self.methods.values())
        self.fresh = self._fresh(plan.fresh or {}) if asked or plan.fresh is not None else {}
        self._check_controls()
        self._check_nameless()

    def _fresh(self, table: Mapping[str, Any]) -> dict[int, Eraser]:
        """What learns fresh keys, by the number of its updates."""
        fresh: Fresh = filled(Fresh, "plan's fresh", table)
        kind = self._kind if fresh.preset else None
        base = erase.build(fresh.eraser, fresh.settings, kind)
        if not base.has_key:
            raise ExpungeError(f"plan's fresh with {fresh.eraser}, which makes no key: expected a method with keys")
        if not each_once("plan's fresh updates", fresh.updates):
            return {int(settings_of(base)["iterations"]): base}
        given = [{**fresh.settings, "iterations": updates} for updates in fresh.updates]
        return {
            updates: erase.build(fresh.eraser, settings, kind)
            for updates, settings in zip(fresh.updates, given, strict=True)
        }

    def _published(self, table: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The published figures of the plan's rows."""
        paper: Published = filled(Published, "plan's paper", table)
        lines = read_lines(Path(paper.file))
        found: list[dict[str, Any]] = []
        for name, at in paper.rows.items():
            if name not in self.grid.method:
                raise unknown("method of the grid with published figures", name, self.grid.method)
            row = [r for r in lines if [r.get("table"), r.get("method")] == at]
            if not row:
                tables = [str([r.get("table"), r.get("method")]) for r in lines]
                raise unknown(f"published row of '{name}'", str(at), list(dict.fromkeys(tables)))
            bad = [
                r for r in row if not isinstance(r.get("metric"), str) or not isinstance(r.get("value"), int | float)
            ]
            if bad:
                raise ExpungeError(f"published row {bad[0]} of '{name}': expected a metric and a number as its value")
            found += [{**r, "method": name, "published_as": at[1], "group": "paper"} for r in row]
        return found

    def _also(self, entry: Any) -> Further:
        """A further set, read and checked."""
        further: Also = filled(Also, "plan's also", entry)
        check_counts("plan's also", count=further.count)
        metrics = self.metrics if further.metrics is None else [planned_metric(m) for m in further.metrics]
        each_once("plan's metrics", [(m.name, m.settings) for m in metrics])
        if further.label is not None and not further.set.endswith(".csv"):
            raise ExpungeError(f"set '{further.set}' with label '{further.label}': expected one for a CSV only")
        read = read_set(further.set, CONCEPTS, further.label)
        if read.name in GROUPS or read.name.startswith(KINDS):
            raise ExpungeError(
                f"a further set of the plan is called '{read.name}': expected another name than {', '.join(GROUPS)}"
            )
        return Further(read.name, self._part(further.set, read), read.concepts, further.count, metrics)

    def _part(self, name: str, read: ConceptSet) -> Part:
        """The plan's part of a set that was read by ``name``; a published file of prompts has no other than test."""
        if name.endswith(".csv") and self.plan.part != "test":
            raise ExpungeError(f"set '{name}' with part '{self.plan.part}': expected test, as a CSV has one part only")
        return read.part(self.plan.part)

    def _others(self, table: Mapping[str, Any]) -> Further:
        """The prompts for what no method of the plan is told, nor the plan's own set names."""
        others: Others = filled(Others, "plan's others", table)
        check_counts("plan's others", count=others.count)
        listed = [w for m in self.methods.values() if not isinstance(m.retain, bool) for w in m.retain]
        part = read_set(others.set, CONCEPTS).part(self.plan.part)
        shown = [f" {p} " for wish in self.pairs.values() for p in (*wish.unsafe, *wish.safe)]
        seen = {c for _, c in part.prompts if any(f" {c} " in p for p in shown)}
        named = {*self.set.concepts, *self.told(self.set.concepts), *listed, *seen}
        prompts = tuple((p, c) for p, c in part.prompts if c not in named)
        concepts = sorted({c for _, c in prompts})
        return Further("others", replace(part, prompts=prompts), concepts, others.count, self.metrics)

    def _check_labels(self) -> None:
        """Refuse a concept that a metric's judge does not know, or prompts that it cannot read, before anything is trained."""
        own = (self.metrics, self.set.concepts, self.prompts())
        asked = [own, *((f.metrics, f.concepts, f.part.prompts) for f in self.further)]
        erased = {c for targets in self.splits.values() for c in (*targets, *self.told(targets))}
        for metrics, concepts, prompts in asked:
            for metric in metrics:
                metric.check(prompts)
                judge = metric.settings.get("judge")
                if judge is not None:
                    opened = Catalog("judges").open(judge)
                    for concept in concepts if metric.asks_kept else erased.intersection(concepts):
                        opened.label_ids(concept)

    def _check_histograms(self) -> None:
        """Refuse bars of images whose detections nothing counts, or two metrics do."""
        gone = {c for targets in self.splits.values() for c in (*targets, *self.told(targets))}
        counted = {"set": self.metrics, **{f.group: f.metrics for f in self.further if gone.intersection(f.concepts)}}
        for bars in self.histograms:
            if [metric.name for metric in counted.get(bars.group, ())].count("ner") != 1:
                raise ExpungeError(
                    f"histogram '{bars.title}' of '{bars.group}': expected a set with targets and the metric 'ner' once"
                )

    def _check_pairs(self) -> None:
        for name, method in self.methods.items():
            if method.images is None:
                continue
            given = [method.images] if isinstance(method.images, str) else list(method.images)
            for pairs_name in given:
                if pairs_name not in self.pairs:
                    raise unknown(f"pairs of method '{name}'", pairs_name, self.pairs)
            chosen = self.grid.split or tuple(self.splits)
            if method.order == "sequential" or len(chosen) > 1:
                raise ExpungeError(
                    f"method '{name}' learns from pairs {given} for targets one after another, or several splits: "
                    "expected one split, erased at once or apart"
                )
            words = [w for split in chosen for w in self.told(self.splits[split])]
            if method.order == "joint" and len(given) != 1:
                raise ExpungeError(
                    f"method '{name}' learns from pairs {given}, erased at once: expected the name of one"
                )
            if method.order == "apart" and len(given) != len(words):
                raise ExpungeError(
                    f"method '{name}' learns from {len(given)} of the plan's pairs, {given}: expected one for each of {words}"
                )
            wanted = set(self.erasers[name].needs([Concept(name=word) for word in self.told(self.set.concepts)]))
            if wanted != set(pairs.ROLES):
                had = f"{' and '.join(sorted(wanted))} images" if wanted else "no images"
                raise ExpungeError(
                    f"method '{name}' learns from pairs {given}, but {method.eraser} wants {had}: expected a method "
                    f"that wants {' and '.join(pairs.ROLES)} ones"
                )

    def _check_controls(self) -> None:
        for name, method in self.methods.items():
            self._check_strength(name, method)
            if method.order == "apart":
                if self.erasers[name].has_key:
                    raise ExpungeError(f"method '{name}' with keys, erased apart: expected order joint or sequential")
                for split in self.grid.split or self.splits:
                    check_targets([Concept(name=word) for word in self.told(self.splits[split])], [])
            for control in each_once(f"plan's controls of '{name}'", method.controls or ()):
                if control not in (*CONTROLS, *ASKED, *self.methods):
                    raise unknown(f"control of method '{name}'", control, [*CONTROLS, *ASKED, *self.methods])
                if control == "other":
                    self._check_exchange(name)
                if control == "other seed" and len(self.grid.seed) < 2:
                    raise ExpungeError(
                        f"method '{name}' with control other seed in a grid of one: expected two or more"
                    )
                if control in ("neutral", "other") and self.words:
                    raise ExpungeError(
                        f"method '{name}' with control {control} for a class of several words: expected another control"
                    )
            unnamed = self._unnamed() if self.controls(name, self.set.concepts) else None
            if unnamed is not None:
                raise ExpungeError(
                    f"method '{name}' with keys, and no prompt for '{unnamed}' has one of its words: expected no controls"
                )
            if not (self.erasers[name].has_key or set(method.controls or ()) <= set(KEYLESS)):
                raise ExpungeError(
                    f"method '{name}' has controls, but {method.eraser} makes no key: expected no others than "
                    f"{' and '.join(KEYLESS)}"
                )

    def _check_nameless(self) -> None:
        """Refuse a metric that reads what prompts name, where attacks or keys ask for a target without naming it."""
        for targets in (self.splits[split] for split in self.grid.split or self.splits):
            if self.attacks or any("neutral" in self.controls(name, targets) for name in self.methods):
                for metric in self.metrics:
                    metric.check([(self.plan.neutral, target) for target in targets])

    def _check_strength(self, name: str, method: Method) -> None:
        """Refuse a strength that is none, or scales nothing, or that steps, analyses or a key learned anew ignore."""
        check_positive(f"method '{name}'", strength=method.strength)
        if method.strength != 1.0 and not self.erasers[name].scales:
            raise ExpungeError(
                f"method '{name}' with strength {method.strength}, and no weights to scale: expected strength 1"
            )
        looked = [named.name for named in self.analyses]
        looked += [word for word in (*(method.controls or ()), method.order) if word in ("fresh", "sequential")]
        if method.strength != 1.0 and looked:
            raise ExpungeError(f"method '{name}' with strength {method.strength} and {looked[0]}: expected strength 1")

    def _check_exchange(self, name: str) -> None:
        """Refuse the control that exchanges prompts where a key has none to exchange."""
        if any(len(self.splits[s]) < 2 for s in self.grid.split or self.splits):
            raise ExpungeError(f"method '{name}' with control other on a split of one target: expected two or more")
        if self.alone(name):
            how = "sequential" if self.methods[name].order == "sequential" else "shared"
            raise ExpungeError(f"method '{name}' with control other and {how} keys: expected a key of several prompts")

    def alone(self, name: str) -> bool:
        """Whether each key of a method holds one prompt only."""
        return self.methods[name].order == "sequential" or self.erasers[name].shares_key

    def controls(self, name: str, targets: Sequence[str]) -> Sequence[str]:
        """The recoveries to try with the key of method ``name``."""
        given = self.methods[name].controls
        if given is not None or not self.erasers[name].has_key:
            return given or ()
        left_out = ("neutral", "other") if self.words else ("other",) if len(targets) < 2 or self.alone(name) else ()
        return [c for c in CONTROLS if c not in left_out]

    def _unnamed(self) -> str | None:
        """A class none of whose prompts holds one of its words, so that its keys are never used."""
        for concept, words in self.words.items():
            prompts = [p for p, c in self.prompts() if c == concept]
            if not any(word in prompt for word in words for prompt in prompts):
                return concept
        return None

    @property
    def groups(self) -> list[str]:
        """What the table's numbers are of, beside groups that begin with one of `KINDS`."""
        return ["set", "memory", *(further.group for further in self.further)]

    def told(self, targets: Sequence[str]) -> list[str]:
        """The words that erasers are told for ``targets``."""
        return [word for target in targets for word in self.words.get(target, [target])]

    def prompts(self) -> list[tuple[str, str]]:
        """The set's prompts in the plan's part, each with its concept."""
        return list(self.set.part(self.plan.part).prompts)
