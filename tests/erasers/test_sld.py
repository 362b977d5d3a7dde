import pytest
import torch

from expunge.core.concept import Concept
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.core.knowledge import Knowledge
from expunge.core.query import Query
from expunge.erasers.sld import LEVELS, SLD, UNSAFE, SafetyGuidance
from expunge.stages import erase
from tiny import tiny_pipeline

TASK = Task(targets=[Concept(name="church"), Concept(name="dog")])
NUMBERS = {"warmup": 1, "scale": 30.0, "threshold": 0.02, "momentum_scale": 0.3, "momentum_beta": 0.4}


def edit_of(eraser, backbone):
    (step,) = eraser.steps(backbone, TASK)
    return step.edit()


def by_hand(backbone, prompt, text, steps, s_g, warmup, scale, threshold, momentum_scale, momentum_beta):
    """The paper's loop, element by element, with the scheduler and the UNet called without expunge."""
    parts = backbone.components()
    scheduler = type(parts["scheduler"]).from_config(parts["scheduler"].config)
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        told = [backbone.encode([words]).embeds for words in ("", prompt, text)]
        x = backbone.noise(5)
        nu = torch.zeros_like(x).flatten().tolist()
        for i, t in enumerate(scheduler.timesteps):
            e_0, e_p, e_s = (parts["unet"](x, t, encoder_hidden_states=c).sample for c in told)
            out = []
            for j, (u, p, s) in enumerate(zip(*(e.flatten().tolist() for e in (e_0, e_p, e_s)), strict=True)):
                mu = min(1.0, abs(scale * (p - s))) if p - s < threshold else 0.0
                gamma = mu * (s - u) + momentum_scale * nu[j]
                nu[j] = momentum_beta * nu[j] + (1 - momentum_beta) * gamma
                out.append(u + s_g * (p - u - (gamma if i >= warmup else 0.0)))
            x = scheduler.step(torch.tensor(out).view(x.shape), t, x).prev_sample
    return x


@pytest.mark.parametrize("change", [{}, {"warmup": 0}, {"warmup": 3}, {"momentum_scale": 0.0}, {"threshold": -0.05}])
def test_generation_is_the_papers_loop(backbone, change):
    numbers = {**NUMBERS, **change}
    expected = by_hand(backbone, "dog", "church", 4, 4.0, **numbers)
    query = Query(prompt="dog", seed=5, guidance=4.0, steps=4)
    plain = backbone.generate([query]).latents
    before = backbone.cost
    with backbone.attached([SafetyGuidance(text="church", **numbers)]):
        ours = backbone.generate([query]).latents
    assert (backbone.cost - before).forward == 3 * 4
    assert torch.allclose(ours, expected, atol=1e-4)
    assert not torch.allclose(ours, plain, atol=1e-4)


def test_the_levels_are_the_papers(backbone):
    assert LEVELS == {
        "weak": (15, 200, 0.0, 0.0, 0.0),
        "medium": (10, 1000, 0.01, 0.3, 0.4),
        "strong": (7, 2000, 0.025, 0.5, 0.7),
        "max": (0, 5000, 1.0, 0.5, 0.7),
    }
    edit = edit_of(SLD(level="strong", warmup=2), backbone)
    assert (edit.text, edit.warmup, edit.scale, edit.momentum_beta) == ("church, dog", 2, 2000, 0.7)
    with pytest.warns(ExpungeWarning, match="it cuts '.*cruelty'"):
        assert edit_of(SLD(concept="unsafe"), backbone).text == f"church, dog, {UNSAFE}"
    assert len(UNSAFE.split(", ")) == 20


def test_a_level_of_which_parts_are_given_has_no_stronger_one():
    assert SLD(level="medium").stronger(2.0) == SLD(level="strong")
    assert SLD(level="medium", scale=100.0).stronger(2.0) is None
    assert SLD(level="medium", scale=1000.0).stronger(2.0) is None, "the level's own, but given"


def test_the_paper_s_list_is_knowledge_where_it_is_steered_away_from():
    assert SLD(concept="unsafe", separator="; ").knowledge() == Knowledge(words=tuple(UNSAFE.split(", ")))
    assert SLD(level="max").knowledge() == Knowledge()


def test_reaches_a_pipeline_the_user_holds(backbone):
    edit = SafetyGuidance(text="church", **NUMBERS)
    with backbone.attached([edit]):
        ours = backbone.generate([Query(prompt="dog", seed=5, guidance=4.0, steps=4)]).latents
    pipe = tiny_pipeline()
    call = {"latents": backbone.noise(5), "guidance_scale": 4.0, "num_inference_steps": 4, "output_type": "latent"}
    edit.attach(pipe)
    assert torch.allclose(pipe("dog", **call).images, ours, atol=1e-4)
    assert torch.allclose(pipe("dog", **call).images, ours, atol=1e-4), "momentum belongs to one generation"
    edit.detach(pipe)


def test_gradients_with_respect_to_the_conditioning_match_finite_differences(backbone):
    """Away from the clamp: the scale is small, so no weight reaches 1."""
    edit = SafetyGuidance(text="church", **{**NUMBERS, "warmup": 0, "scale": 1.0, "threshold": 10.0})
    x = backbone.noise(5).double()
    unet = backbone.components()["unet"].double()
    with torch.no_grad():
        null, cond, safety = (backbone.encode([w]).embeds.double() for w in ("", "dog", "church"))
    ask = lambda c: unet(x, 500, encoder_hidden_states=c).sample  # noqa: E731

    def guided(c):
        e_null, e_cond = ask(null), ask(c)
        away = edit.away(e_null, e_cond, ask(safety), torch.zeros_like(x))
        return (e_null + 4.0 * (e_cond - e_null - away)).square().mean()

    cond.requires_grad_(True)
    (gradient,) = torch.autograd.grad(guided(cond), cond)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0
    direction = torch.randn(cond.shape, generator=torch.Generator().manual_seed(0)).double()
    h = 1e-5
    with torch.no_grad():
        slope = (guided(cond + h * direction) - guided(cond - h * direction)) / (2 * h)
    assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=1e-3)
    unet.float()


def test_guided_passes_gradients_to_the_conditioning(backbone):
    with torch.no_grad():
        cond, null = backbone.encode(["dog"]), backbone.encode([""])
    embeds = cond.embeds.clone().requires_grad_()
    told = type(cond)(embeds=embeds, tokens=cond.tokens)
    with backbone.attached([SafetyGuidance(text="church", **{**NUMBERS, "warmup": 0})]):
        out = backbone.guided(backbone.noise(5), 500, 0, told, null, 4.0, {}).combined
        (gradient,) = torch.autograd.grad(out.square().mean(), embeds)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"level": "huge"}, "unknown sld's level 'huge'"),
        ({"scale": 0.0}, "scale"),
        ({"momentum_beta": 1.0}, "beta below 1"),
    ],
)
def test_bad_settings_are_refused(change, words):
    with pytest.raises(ExpungeError, match=words):
        erase.build("sld", change, None)
