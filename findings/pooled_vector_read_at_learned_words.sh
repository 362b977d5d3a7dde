#!/usr/bin/env bash
# A learned word (textual inversion, Concept Inversion) on a model that takes CLIP's pooled vector (SDXL, SD3, FLUX).
# The pooled vector should be read where the text ends, so that it is of the whole prompt. Where the text encoder's configuration says
# `eos_token_id: 2`, as OpenAI's does and many models' that were made with it, transformers takes the position of the largest token id
# instead. That is the end, until a word is added: its id is larger. Seen: with a learned word in the prompt the pooled vector is the
# word's own, so nothing behind the word changes it. With the tokenizer's true id in the configuration it does.
# Only the pooled vector differs, and no error or warning is given.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 <<'PY'
import torch
from heard import heard
from tiny_sd import pipeline

pipe = pipeline()
pipe.load_textual_inversion(torch.randn(1, 32, generator=torch.Generator().manual_seed(0)), token="<toy>")

def pooled(prompt, eos):
    pipe.text_encoder.config.eos_token_id = eos
    encoder = type(pipe.text_encoder)(pipe.text_encoder.config)
    encoder.load_state_dict(pipe.text_encoder.state_dict())
    ids = pipe.tokenizer(prompt, padding="max_length", max_length=16, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        return encoder(ids).pooler_output

def apart(one, other, eos):
    a, b = pooled(one, eos), pooled(other, eos)
    return float((a - b).norm() / a.norm())

true = pipe.tokenizer.eos_token_id
with heard() as said:
    seen = {eos: apart("a <toy> cat", "a <toy> dog", eos) for eos in (2, true)}
    plain = apart("a cat", "a dog", 2)
print("how far 'a <toy> cat' and 'a <toy> dog' are apart, eos_token_id 2:", seen[2], f"{true}:", seen[true], "without <toy>, 2:", plain)
assert plain > 0.01 and seen[true] > 0.01
assert not said and seen[2] == 0, "changed"
PY
