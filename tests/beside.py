"""Another text that layers read beside the prompt (EIUP, GIE), in diffusers' own classes, head by head."""

import torch


class Beside:
    """A processor for cross-attention: the prompt's map and values, and in some rows another text's words by weight."""

    def __init__(self, text, words, weights):
        """Read the tokens ``words`` of ``text`` by ``weights``, a list of numbers for each row that does."""
        self.text, self.words, self.weights, self.on = text, words, weights, True

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        width, out = hidden_states.shape[-1] // attn.heads, []
        for row, hidden in enumerate(hidden_states):
            q, k, v = attn.to_q(hidden), attn.to_k(encoder_hidden_states[row]), attn.to_v(encoder_hidden_states[row])
            k2, v2 = attn.to_k(self.text), attn.to_v(self.text)
            heads = []
            for head in range(attn.heads):
                some = slice(head * width, (head + 1) * width)
                read = (q[:, some] @ k[:, some].T / width**0.5).softmax(-1) @ v[:, some]
                if row in self.weights and self.on:
                    found = (q[:, some] @ k2[:, some].T / width**0.5).softmax(-1)
                    for j, w in zip(self.words, self.weights[row], strict=True):
                        read = read + w * found[:, j : j + 1] * v2[j : j + 1, some]
                heads.append(read)
            out.append(attn.to_out[0](torch.cat(heads, -1)))
        return torch.stack(out)


@torch.no_grad()
def by_hand(backbone, queries, text, words, weights, acting):
    """The sampler's loop with the real UNet, whose attention is the formula; ``text`` is read in the steps ``acting``.

    ``weights`` says how much each of its words counts in each image, given noise, first timestep and the prompts' vectors.
    """
    parts = backbone.components()
    unet, scheduler = parts["unet"], type(parts["scheduler"]).from_config(parts["scheduler"].config)
    scheduler.set_timesteps(queries[0].steps)
    x = torch.cat([backbone.noise(query.seed) for query in queries])
    null, cond, other = (backbone.encode(p).embeds for p in ([""], [query.prompt for query in queries], [text]))
    count = len(x)  # the half with the prompts follows the other
    by_row = {count + row: each for row, each in enumerate(weights(x, scheduler.timesteps[0], cond))}
    beside, before = Beside(other[0], words, by_row), unet.attn_processors
    unet.set_attn_processor({n: beside if ".attn2." in n else p for n, p in before.items()})
    both = torch.cat([null.expand(count, -1, -1), cond])
    for index, t in enumerate(scheduler.timesteps):
        beside.on = index in acting
        e_null, e_cond = unet(torch.cat([x, x]), t, encoder_hidden_states=both).sample.chunk(2)
        x = scheduler.step(e_null + queries[0].guidance * (e_cond - e_null), t, x).prev_sample
    unet.set_attn_processor(before)
    return x
