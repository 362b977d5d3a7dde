# A learned word of several vectors (textual inversion, Concept Inversion, a private key), taken out of a pipeline with
# `unload_textual_inversion(word)`. An expert expects the pipeline as it was. Seen: the first vector goes, the others stay in the text encoder and in
# the tokenizer, where prompts can ask for them, and `save_pretrained` writes them. The word cannot be loaded again. Without an
# argument, the call takes all of them out. Nothing is said.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 <<'PY'
import torch
from heard import heard
from safetensors.torch import load_file
from tiny_sd import pipeline

pipe = pipeline()
vectors = torch.arange(96.0).reshape(3, 32)
size = len(pipe.tokenizer)
pipe.load_textual_inversion({"<key>": vectors}, token="<key>")
with heard() as said:
    pipe.unload_textual_inversion("<key>")
    pipe.save_pretrained("published")
held = load_file("published/text_encoder/model.safetensors")
table = next(tensor for name, tensor in held.items() if name.endswith("token_embedding.weight"))
left = [bool((table == vector).all(1).any()) for vector in vectors]
print("vectors in the published text encoder:", left, "more tokens than before:", len(pipe.tokenizer) - size)
assert not said and left == [False, True, True] and len(pipe.tokenizer) == size + 2, "changed"
assert size in pipe.tokenizer("a <key>_1").input_ids, "changed"
try:
    pipe.load_textual_inversion({"<key>": vectors}, token="<key>")
except ValueError as error:
    print("loaded again:", error)
else:
    raise AssertionError("changed")
pipe.unload_textual_inversion()
table = pipe.text_encoder.get_input_embeddings().weight
assert len(pipe.tokenizer) == len(table) == size, "changed"
PY
