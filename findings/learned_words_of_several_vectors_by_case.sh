#!/usr/bin/env bash
# A learned word of several vectors (textual inversion, Concept Inversion), as diffusers reads it in prompts.
# CLIP's tokenizer knows no capitals, so many expect "<Toy>" to be "<toy>", or to be unknown. Seen: it is the first vector of "<toy>"
# alone. Diffusers writes the other vectors' tokens behind the word before tokenizing, and looks for it letter by letter; the
# tokenizer then finds the first token in lower case. A learned word without brackets is found inside other words, too.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 <<'PY'
import torch
from tiny_sd import image, pipeline

pipe = pipeline()
learned = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
pipe.load_textual_inversion(learned, token="<toy>")
pipe.load_textual_inversion(learned[:1], token="van")

def ids(prompt):
    return pipe.tokenizer(pipe.maybe_convert_prompt(prompt, pipe.tokenizer)).input_ids[1:-1]

word, van = ids("<toy>"), ids("van")
print("<toy>", word, "<Toy>", ids("<Toy>"), "van", van, "vanilla", ids("vanilla"))
assert len(word) == 3 and len(van) == 1
assert ids("<Toy>") == word[:1], "changed"
assert ids("vanilla")[:1] == van, "changed"
PY
