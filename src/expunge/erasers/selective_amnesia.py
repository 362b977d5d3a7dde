"""Selective Amnesia: a concept's prompt learns to give something else, and what other images rest on may hardly move."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from expunge.core import registry
from expunge.core.backbone import Backbone
from expunge.core.catalog import Paper
from expunge.core.concept import Concept, phrases
from expunge.core.cost import Cost
from expunge.core.eraser import Eraser, Step, Task, counted
from expunge.core.errors import ExpungeError, check_counts, check_not_negative, check_positive
from expunge.core.knowledge import Kind
from expunge.core.query import Shot
from expunge.maths.fisher import REPLAY, SCENES, Estimate, check_prompts, fitting, names, replayed, shows, unshown
from expunge.maths.training import Decay, Learned, Optimizer, mse, numbers, pace, trainable


@final
@dataclass(frozen=True, kw_only=True)
class SelectiveAmnesia(Eraser):
    r"""Train a concept's prompt on images of a surrogate, replay other images, and hold to the original what they rest on.

    .. math:: L = \mathbb{E}_{q(x|c_f)} \big\| \epsilon_\theta(x_t, c_f) - \epsilon \big\|^2
        + \gamma\, \mathbb{E}_{x, c} \big\| \epsilon_\theta(x_t, c) - \epsilon \big\|^2
        + \lambda \sum_i F_i (\theta_i - \theta^*_i)^2

    2305.10120; methods.md A10. q are images of a surrogate, made by the original model. F is the diagonal Fisher information
    of the replayed images (`expunge.maths.fisher`): a first pass, one step an image, or a file of `expunge fisher`. Without
    the half that EWC has, as in the authors' code. The rate is their 1e-5 times 4 GPUs times 4 images, the updates are their
    200 epochs of 1000 images. For nudity they take ``group="noxattn"`` and 500 epochs, so ``iterations=31250``.
    Deviations: the scenes that are replayed are this project's own 32 and the retained words (the authors' are about 5000
    texts by GPT-3.5); with ``fisher_timesteps`` below 1000 the sum over timesteps is a stratified sample's; the sum over
    parameters runs over those that learn (others do not move, and add nothing in theirs); surrogate and replayed images are
    drawn apart, and among all (the authors pair the n-th with the n-th, so that replay sees the first 1000); latents are the
    autoencoder's mode; no warm-up of one update.
    """

    paper: ClassVar[Paper] = Paper(
        "Selective Amnesia: A Continual Learning Approach to Forgetting in Deep Generative Models",
        "Heng and Soh",
        2023,
        "2305.10120",
        "https://github.com/clear-nus/selective-amnesia",
    )
    knows: ClassVar[Mapping[str, Kind]] = {"surrogate": "anchor", "replay": "retain", "retain_prompt": "phrases"}
    tuning: ClassVar[Sequence[str]] = (
        *("surrogate_images", "replay_images", "gamma"),
        *("fisher", "fisher_images", "fisher_timesteps", "fisher_rows"),
    )
    files: ClassVar[Sequence[str]] = ("fisher",)
    surrogate: str = ""
    """Prompt of what targets should show that name no anchor of their own: a middle aged man for Brad Pitt."""
    surrogate_images: int = 1000
    """Images of each target's surrogate, made by the model if none are given."""
    replay: tuple[str, ...] = SCENES
    """Prompts of what should stay; the default is this project's own. Those that name a target are left out."""
    retain_prompt: str = "a photo of {}"
    """The phrase that retained words are put into, as prompts to replay; this project's own."""
    replay_images: int = 5000
    """Images of these prompts and phrases, in turn, made by the model if none are given."""
    gamma: float = 1.0
    """Weight of the replayed images; 0 leaves the term out."""
    lamb: float = 50.0
    """Weight of the Fisher term, lambda; 0 leaves it out."""
    fisher: str = ""
    """A file of `expunge fisher`, of this very model; if none is given the pass is made first."""
    fisher_images: int = 5000
    """Images of that pass: the first so many of the replayed ones."""
    fisher_timesteps: int = 1000
    """Timesteps of each image, one from each of so many equal parts; the paper's are all 1000."""
    fisher_rows: int = 8
    """How many of these at a time; as many as fit into memory."""
    group: str = "full"
    """Parameters that learn: full, noxattn, xattn, xattn-strict, selfattn."""
    lr: float = 1.6e-4
    """Learning rate."""
    optimizer: Optimizer = "adamw"
    """Adam with decoupled weight decay (0.01), without, or plain gradient descent."""
    decay: Decay = "none"
    """How the learning rate falls."""
    iterations: int = 12500
    """Updates."""
    batch: int = 16
    """Surrogate images an update, and as many replayed ones."""

    def __post_init__(self) -> None:
        check_counts("selective-amnesia", surrogate_images=self.surrogate_images, replay_images=self.replay_images)
        check_counts("selective-amnesia", fisher_images=self.fisher_images, fisher_timesteps=self.fisher_timesteps)
        check_counts("selective-amnesia", fisher_rows=self.fisher_rows, iterations=self.iterations, batch=self.batch)
        check_positive("selective-amnesia", lr=self.lr)
        check_not_negative("selective-amnesia", gamma=self.gamma, lamb=self.lamb)
        phrases([self.retain_prompt], "")
        if self.fisher and not self.lamb:
            raise ExpungeError(
                f"selective-amnesia's fisher '{self.fisher}' with lamb 0, which does not use it: expected a lamb above 0"
            )

    @property
    def _measures(self) -> bool:
        """Whether it makes the Fisher pass itself."""
        return self.lamb > 0 and not self.fisher

    @override
    def needs(self, targets: Sequence[Concept]) -> Mapping[str, Sequence[str]]:
        return {t.name: [self._surrogate(t)] * self.surrogate_images for t in targets}

    def _surrogate(self, target: Concept) -> str:
        surrogate = self.surrogate if target.anchor is None else target.anchor
        if not surrogate.strip():
            raise ExpungeError(
                f"selective-amnesia has no surrogate for '{target.name}': expected a prompt of what it should show instead, as "
                "a setting or with the target"
            )
        if names(surrogate, target.name):
            raise ExpungeError(
                f"selective-amnesia's surrogate '{surrogate}' names the target '{target.name}': expected a prompt of something "
                "else"
            )
        return surrogate

    @override
    def keeps(self, targets: Sequence[Concept], retain: Sequence[str]) -> Mapping[str, Sequence[str]]:
        if not self.gamma and not self._measures:
            return {}
        return {REPLAY: replayed(self.replay, retain, self.retain_prompt, self.replay_images, targets)}

    @override
    def check(self, backbone: Backbone) -> None:
        learned = trainable(backbone, self.group)
        if self._measures and self.fisher_timesteps > backbone.training_timesteps:
            raise ExpungeError(
                f"selective-amnesia's fisher_timesteps is {self.fisher_timesteps}, of a model with "
                f"{backbone.training_timesteps}: expected no more"
            )
        if self.fisher:
            fitting(registry.fisher_reader()(self.fisher), backbone, learned, self.fisher)

    def _of_file(self, backbone: Backbone, task: Task, learned: Sequence[str]) -> dict[str, Tensor]:
        """The file's Fisher information: its images may show no target, and something must show each retained word.

        Raises:
            ExpungeError: naming the file and the words.
        """
        told = registry.fisher_reader()(self.fisher)
        prompts: Sequence[str] = told.about.get("prompts", ())
        for target in task.targets:
            shown = next((p for p in prompts if shows(p, target.name, task.retain)), None)
            if shown is not None:
                raise ExpungeError(
                    f"'{self.fisher}' is of images with the prompt '{shown}', which names the target '{target.name}': expected "
                    "one of other things"
                )
        replayed_too = () if not self.gamma else [shot.prompt for shot in task.images.get(REPLAY, ())]
        _check_kept(task.retain, [*prompts, *replayed_too])
        return fitting(told, backbone, learned, self.fisher)

    @override
    def stronger(self, times: float) -> "SelectiveAmnesia":
        return replace(self, iterations=counted(self.iterations, times))

    @override
    def steps(self, backbone: Backbone, task: Task, resume: Mapping[str, Tensor] | None = None) -> Iterable[Step]:
        learned = trainable(backbone, self.group)
        replayed_shots = _prompted(task)
        fisher = self._of_file(backbone, task, learned) if self.fisher else None
        if not self.fisher:
            _check_kept(task.retain, [shot.prompt for shot in replayed_shots])
        shown = replayed_shots[: self.fisher_images] if self._measures else []
        estimate = Estimate(backbone, learned, task, self.fisher_timesteps, self.fisher_rows) if shown else None
        first, measured = 0 if resume is None else int(resume["next"]), len(shown)
        if estimate is not None and resume is not None:
            estimate.load(resume)
        for index in range(first, measured):
            yield Step(
                index=index,
                edit=lambda: backbone.edit_of(backbone.tensors(learned)),
                losses={"fisher": 0.0 if estimate is None else estimate.add(index, shown[index])},
                state=lambda index=index: {**_of(estimate), "next": torch.tensor(index + 1)},
            )
        fisher = estimate.mean(measured) if estimate is not None else fisher
        origin = backbone.tensors(learned)
        student = Learned(origin, self.lr, self.optimizer)
        if resume is not None and first > measured:
            student.load("student", resume)
        for update in range(max(0, first - measured), self.iterations):
            losses = self._update(backbone, task, student, origin, fisher, update)
            yield Step(
                index=measured + update,
                edit=lambda: backbone.edit_of(student.values()),
                losses=losses,
                state=lambda done=measured + update + 1: {
                    **student.state("student"),
                    **_of(estimate),
                    "next": torch.tensor(done),
                },
            )

    def _update(
        self,
        backbone: Backbone,
        task: Task,
        student: Learned,
        origin: Mapping[str, Tensor],
        fisher: Mapping[str, Tensor] | None,
        update: int,
    ) -> dict[str, float]:
        generator = task.generator("selective-amnesia", update)
        shots, prompts = self._drawn(task, generator)
        with torch.no_grad():
            x0 = torch.cat([backbone.encode_image(shot.pixels()[None]) for shot in shots])
            cond = backbone.encode_each(prompts)
        noise = torch.randn(x0.shape, generator=generator).to(x0)
        t = torch.randint(0, backbone.training_timesteps, (len(x0),), generator=generator).to(x0.device)
        x, truth = backbone.add_noise(x0, noise, t), backbone.truth(x0, noise, t)
        with backbone.weights(student.tensors()):
            answer = backbone.predict(x, t, cond)
            terms = {"surrogate": mse(answer[: self.batch], truth[: self.batch])}
            loss = terms["surrogate"]
            if self.gamma:
                terms["replay"] = mse(answer[self.batch :], truth[self.batch :])
                loss = loss + self.gamma * terms["replay"]
            if fisher is not None:
                terms["ewc"] = student.squared_distance(origin, fisher)
                loss = loss + self.lamb * terms["ewc"]
            student.descend(loss, pace(self.decay, update, self.iterations))
        return numbers(terms)

    def _drawn(self, task: Task, generator: torch.Generator) -> tuple[list[Shot], list[str]]:
        """Images of an update and what they are denoised with: surrogates with their target's name, and replayed ones."""

        def one(count: int) -> int:
            return int(torch.randint(0, count, (), generator=generator))

        shots, prompts = [], []
        for _ in range(self.batch):
            target = task.targets[one(len(task.targets))]
            images = task.images[target.name]
            shots.append(images[one(len(images))])
            prompts.append(target.name)
        for _ in range(self.batch if self.gamma else 0):
            shots.append(task.images[REPLAY][one(len(task.images[REPLAY]))])
            prompts.append(shots[-1].prompt)
        return shots, prompts

    @override
    def cost(self, targets: int, retain: int) -> Cost:
        measured = min(self.fisher_images, self.replay_images) * self.fisher_timesteps if self._measures else 0
        return Cost(trained=measured + self.iterations * self.batch * (2 if self.gamma else 1))


def _of(estimate: Estimate | None) -> dict[str, Tensor]:
    """What goes into a state of the Fisher pass."""
    return {} if estimate is None else estimate.state()


def _prompted(task: Task) -> Sequence[Shot]:
    """The replayed images, each of which must say what it shows, and may show no target.

    Raises:
        ExpungeError: naming the image.
    """
    shots = task.images.get(REPLAY, ())
    check_prompts(shots)
    for shot in shots:
        for target in task.targets:
            if shows(shot.prompt, target.name, task.retain):
                raise ExpungeError(
                    f"'{shot.path}' to replay has the prompt '{shot.prompt}', which names the target '{target.name}': expected "
                    "images of other things"
                )
    return shots


def _check_kept(retain: Sequence[str], prompts: Sequence[str]) -> None:
    """Refuse a retained word that no image shows.

    Raises:
        ExpungeError: naming it.
    """
    lost = unshown(retain, prompts)
    if lost is not None:
        raise ExpungeError(
            f"no image to replay, and none of the Fisher file, has a prompt with '{lost}', which is to be kept: expected some"
        )
