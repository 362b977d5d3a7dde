import dataclasses
import itertools

import pytest
import torch

from beside import by_hand
from expunge import backbones
from expunge.core.concept import Concept
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError, ExpungeWarning
from expunge.core.query import Query
from expunge.erasers.gie import GIE, word_weights
from expunge.maths.attention import recorded
from expunge.stages import erase
from expunge.store import load_edit, save_edit
from tiny import still, tiny_pipeline, tiny_sd3_pipeline, tiny_xl_pipeline

TASK = Task(targets=[Concept(name="church"), Concept(name="dog")], retain=["cat"])
ASKED = [Query(prompt=prompt, seed=seed, guidance=4.0, steps=5) for seed, prompt in enumerate(["a dog", "a cat"])]
SMALL = GIE(weight=-4.0, inhibits="target", images=15, batch=7, updates=30, lr=1e-2, templates=("a {}", "{}"))
SHAPES = [("layers", "shared"), ("heads", "each")]


def drained(method, backbone, task=TASK):
    *_, last = method.steps(backbone, task)
    return last


def shown(backbone, x, t, cond, text, words, features):
    """The mean attention of each layer or head to the words, of inputs caught at diffusers' modules: image, word, number."""
    unet, caught = backbone.components()["unet"], {}
    names = [name.removeprefix("unet.") for name in backbone.attentions()]
    handles = [
        unet.get_submodule(name).register_forward_pre_hook(lambda m, a, n=name: caught.update({n: (m, a[0])}))
        for name in names
    ]
    with torch.no_grad():
        unet(x, t, encoder_hidden_states=cond)
        for handle in handles:
            handle.remove()
        out = []
        for module, hidden in (caught[name] for name in names):
            width, keys = hidden.shape[-1] // module.heads, module.to_k(text[0])
            by_head = []
            for head in range(module.heads):
                some = slice(head * width, (head + 1) * width)
                maps = (module.to_q(hidden)[..., some] @ keys[:, some].T / width**0.5).softmax(-1)
                by_head.append(maps[:, :, list(words)].mean(1))
            out += by_head if features == "heads" else [torch.stack(by_head).mean(0)]
    return torch.stack(out, -1)


def network_of(edit):
    """The edit's network as torch's own modules, one for each word or one for all."""
    tensors, nets = edit.tensors(), []
    for word in range(len(tensors["mean"])):
        layers = []
        for i in range(3):
            taken, given = tensors[f"weight.{i}"].shape[1:]
            layers += [torch.nn.ReLU()] * bool(i) + [torch.nn.Linear(taken, given)]
            layers[-1].weight.data, layers[-1].bias.data = tensors[f"weight.{i}"][word].T, tensors[f"bias.{i}"][word, 0]
        nets.append(torch.nn.Sequential(*layers))
    assert [layer.out_features for layer in nets[0] if isinstance(layer, torch.nn.Linear)] == [64, 32, 1]
    standard = lambda x, word: (x - tensors["mean"][word, 0]) / tensors["spread"][word, 0]  # noqa: E731
    return lambda found: torch.cat(
        [nets[w % len(nets)](standard(found[:, w], w % len(nets))) for w in range(found.shape[1])], -1
    )


@pytest.mark.parametrize(("features", "networks"), SHAPES)
def test_generation_is_a_first_look_and_then_the_formula(backbone, features, networks):
    edit = drained(dataclasses.replace(SMALL, features=features, networks=networks), backbone).edit()
    plain, before = backbone.generate(ASKED).latents, backbone.cost
    with backbone.attached([edit]):
        ours = backbone.generate(ASKED).latents
    assert (backbone.cost - before).forward == 2 * (2 * 5 + 1), "one evaluation more, of the half with the prompt"
    words, net, known = range(1, int(backbone.end(backbone.tokenize([edit.text]))[0])), network_of(edit), []

    def weights(x, t, cond):
        erasure = backbone.encode([edit.text]).embeds
        known.append(net(shown(backbone, x, t, cond, erasure, words, features)).clamp(-4.0, 0.0))
        return known[0]

    expected = by_hand(backbone, ASKED, edit.text, words, weights, range(4))
    assert len(known[0]) == 2
    assert not torch.allclose(known[0][0], known[0][1], atol=1e-2), "each image has its own"
    assert torch.allclose(ours, expected, atol=1e-4)
    assert (ours - plain).abs().max() > 1e-2


@pytest.mark.parametrize(("features", "networks"), SHAPES)
def test_the_network_is_fitted_to_what_each_text_names(backbone, features, networks):
    """Adam on the mean square, from the same start, in torch's own modules; a fifth is held out."""
    method = dataclasses.replace(SMALL, features=features, networks=networks)
    last = drained(method, backbone)
    found, named = last.state()["found"], last.state()["named"]
    tokens = backbone.tokenize(["church dog", "church"])
    ids = [row[1:end] for row, end in zip(tokens, backbone.end(tokens), strict=True)]
    first = len(ids[1])
    assert found.shape[:2] == named.shape == (60, len(ids[0]))
    assert named[0::4].tolist() == [[True] * first + [False] * (len(ids[0]) - first)] * 15, "church, in its turn"
    assert named[2::4].tolist() == [[False] * first + [True] * (len(ids[0]) - first)] * 15, "dog"
    assert not named[1::2].any(), "something else"
    every = drained(dataclasses.replace(method, inhibits="all", updates=1), backbone).state()
    assert torch.equal(every["named"], named.any(1, keepdim=True).expand_as(named))
    assert torch.equal(every["found"], found)
    start = drained(dataclasses.replace(method, updates=1, lr=1e-9), backbone).edit()
    net, kept = network_of(start), torch.tensor([i // 4 % 5 != 4 for i in range(60)])
    told = found[kept] if networks == "each" else found[kept].flatten(0, 1)[:, None]
    assert torch.allclose(start.tensors()["mean"][:, 0], told.mean(0), atol=1e-6)
    assert torch.allclose(start.tensors()["spread"][:, 0], told.std(0), atol=1e-6)
    modules = [
        m for cell in net.__closure__ for m in (cell.cell_contents if isinstance(cell.cell_contents, list) else [])
    ]
    adam = torch.optim.Adam([p for m in modules for p in m.parameters()], lr=method.lr)
    for _ in range(method.updates):
        adam.zero_grad()
        ((net(found[kept]) - -4.0 * named[kept].float()) ** 2).mean().backward()
        adam.step()
    with torch.no_grad():
        assert torch.allclose(word_weights(last.edit().tensors(), found), net(found), atol=1e-3)


def test_what_is_no_target_is_a_retained_word_or_a_random_text(backbone):
    """Known by what the layers show: the same noise and timestep with that text."""
    texts = {"cat": {"random": 0.0}, "": {"random": 0.0}}
    for word, change in texts.items():
        method = dataclasses.replace(SMALL, images=1, batch=1, templates=("{}",), **change)
        task = Task(targets=[Concept(name="dog")], retain=[word] if word else [])
        found = drained(method, backbone, task).state()["found"]
        t = torch.randint(875, 1000, (1,), generator=task.generator("gie", 1))
        x, cond = backbone.noise(task.number("gie noise", 1)), backbone.encode([word]).embeds
        dog = backbone.encode(["dog"]).embeds
        words = range(1, int(backbone.end(backbone.tokenize(["dog"]))[0]))
        assert torch.allclose(found[1:], shown(backbone, x, t, cond, dog, words, "layers"), atol=1e-6)
        random = drained(dataclasses.replace(method, random=1.0), backbone, task).state()["found"]
        assert torch.equal(random[0], found[0])
        assert not torch.allclose(random[1], found[1], atol=1e-6)


@pytest.mark.parametrize("make", [tiny_pipeline, tiny_xl_pipeline])
def test_reaches_a_pipeline_the_user_holds_and_leaves_it(make, tmp_path):
    pipe = still(make())
    backbone = backbones.of(pipe)
    save_edit(drained(SMALL, backbone).edit(), tmp_path / "a.safetensors")
    edit = load_edit(tmp_path / "a.safetensors")
    noise = torch.cat([backbone.noise(seed) for seed in range(2)])
    call = {"latents": noise, "num_inference_steps": 5, "output_type": "latent", "height": 16, "width": 16}
    prompts = [query.prompt for query in ASKED]
    with torch.no_grad():
        plain, alone = (pipe(prompts, guidance_scale=s, **call).images for s in (4.0, 1.0))
        with backbone.attached([edit]):
            ours = backbone.generate(ASKED).latents
        edit.attach(pipe)
        theirs = pipe(prompts, guidance_scale=4.0, **call).images
        unguided = pipe(prompts, guidance_scale=1.0, **call).images
        assert torch.allclose(pipe(prompts, guidance_scale=4.0, **call).images, theirs), (
            "each call has a look of its own"
        )
        edit.detach(pipe)
        assert torch.allclose(theirs, ours, atol=1e-4)
        assert (theirs - plain).abs().max() > 1e-3
        assert (unguided - alone).abs().max() > 1e-3, "it acts without guidance, too"
        assert torch.equal(pipe(prompts, guidance_scale=4.0, **call).images, plain)


def test_a_prompt_that_is_exchanged_on_the_way_is_looked_at_anew():
    pipe = still(tiny_pipeline())
    backbone = backbones.of(pipe)
    edit = drained(dataclasses.replace(SMALL, early=1.0), backbone).edit()
    other = backbone.encode(["a dog"]).embeds.detach()
    looks = []

    def exchange(pipe, index, t, kwargs):
        looks.append(backbone.cost.forward)
        return {"prompt_embeds": torch.cat([kwargs["prompt_embeds"][:1], other])} if index == 1 else {}

    call = {"latents": backbone.noise(1), "num_inference_steps": 4, "output_type": "latent", "height": 16, "width": 16}
    edit.attach(pipe)
    more = {"callback_on_step_end": exchange, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
    pipe("a cat", guidance_scale=4.0, **call, **more)
    edit.detach(pipe)
    assert [after - before for before, after in itertools.pairwise(looks)] == [0, 1, 0]


def test_a_model_that_it_does_not_fit_is_refused(backbone):
    flat = backbones.of(still(tiny_sd3_pipeline()))
    with pytest.raises(ExpungeError, match=r"needs cross-attention, which .* has not"):
        erase.run(flat, "gie", SMALL, TASK.targets, [])
    edit = drained(SMALL, backbone).edit()
    with pytest.raises(ExpungeError, match="has no cross-attention"):
        flat.attach(edit)
    each = drained(dataclasses.replace(SMALL, networks="each"), backbone).edit()
    for change in ({"features": "heads"}, {"text": "dog", "network": each.network}, {"width": edit.width + 1}):
        wrong = dataclasses.replace(edit, **change)
        with pytest.raises(
            ExpungeError, match=r"has \d networks that are told \d+ numbers, of text vectors of \d+: expected 1"
        ):
            backbone.attach(wrong)
    assert not backbone.edits


@pytest.mark.parametrize(
    ("weight", "says", "heeded"), [(-4.0, -9.0, -4.0), (-4.0, 2.0, 0.0), (3.0, 9.0, 3.0), (3.0, 1.0, 1.0)]
)
def test_no_more_is_heeded_than_the_weight_and_nothing_of_the_other_sign(backbone, weight, says, heeded):
    edit = drained(SMALL, backbone).edit()
    network = {**edit.network, "weight.2": torch.zeros(1, 32, 1), "bias.2": torch.full((1, 1, 1), says)}
    edit, state = dataclasses.replace(edit, weight=weight, network=network), {}
    edit.look(backbone, backbone.noise(1), 999, backbone.encode(["a dog"]), state)
    assert (edit.attention(backbone, state).weights == heeded).all()


def test_nobody_is_shown_the_look_and_none_is_had_where_nothing_would_be_read(backbone):
    edit, state = drained(SMALL, backbone).edit(), {}
    cond, before = backbone.encode(["a dog"]), backbone.cost
    with recorded(backbone, 1) as recording, backbone.attached([edit]):
        edit.look(backbone, backbone.noise(1), 150, cond, state)
        assert edit.attention(backbone, state) is None
        assert backbone.cost == before
        edit.look(backbone, backbone.noise(1), 250, cond, state)
    assert (backbone.cost - before).forward == 1
    with pytest.raises(ExpungeError, match="no attention was recorded"):
        recording.maps()


def test_a_network_that_does_not_tell_the_target_says_so(backbone):
    """A tiny random model's attention tells words apart, if it is fitted long enough; not after one small update."""
    with pytest.warns(
        ExpungeWarning, match=r"gie's network says .* where a text names a target, .* expected -4 and 0; feat"
    ):
        erase.run(backbone, "gie", dataclasses.replace(SMALL, updates=1), TASK.targets, [])
    assert drained(dataclasses.replace(SMALL, images=4), backbone).warnings() == [], "none is held out"


@pytest.mark.parametrize("change", [{"weight": 0.0}, {"early": 0.0}, {"early": 1.5}, {"random": 1.1}])
def test_bad_settings_are_refused(change):
    with pytest.raises(ExpungeError, match="expected a weight other than zero, and shares of 1 at most, early above 0"):
        erase.build("gie", change, None)


def test_on_the_testbed_it_tells_a_target_from_other_things():
    backbone = backbones.load("testbed")
    method = GIE(weight=-1.0, images=40, updates=300, features="heads", networks="each", templates=("image of {}",))
    last = drained(method, backbone, Task(targets=[Concept(name="guitar")]))
    assert last.warnings() == []
    edit, said = last.edit(), {}
    for word in ("guitar", "church", "fish"):
        state = {}
        x, cond = torch.cat([backbone.noise(seed) for seed in range(8)]), backbone.encode([f"a drawing of a {word}"])
        edit.look(backbone, x, 876, cond.expand(8), state)
        said[word] = float(edit.attention(backbone, state).weights.mean())
    assert said["guitar"] < -0.6
    assert min(said["church"], said["fish"]) > -0.4
