# Two erasures as LoRAs, made into one with `add_weighted_adapter([a, b], [1, 1], name, combination_type="linear")` of peft.
# An expert expects the change of the one to be the sum of both, as when both are active. Seen: the factors are added, and not their products, so
# each LoRA's rows meet the other's columns: here the result is as far from the sum as the sum is from nothing. With one adapter, at any
# weight, it is exact, and so is "cat" with two, at the sum of the ranks. Nothing is said.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 peft==0.21.2 <<'PY'
import torch
from heard import heard
from peft import LoraConfig, get_peft_model
from tiny_sd import pipeline

torch.manual_seed(1)
config = LoraConfig(r=4, lora_alpha=4, target_modules=["to_k"], init_lora_weights=False)
model = get_peft_model(pipeline().unet, config, adapter_name="a")
model.add_adapter("b", config)
layer = next(module for name, module in model.named_modules() if name.endswith("attn2.to_k"))
torch.set_grad_enabled(False)
total = layer.get_delta_weight("a") + layer.get_delta_weight("b")
away = {}
with heard() as said:
    for kind in ("linear", "cat"):
        model.add_weighted_adapter(["a", "b"], [1.0, 1.0], kind, combination_type=kind)
        away[kind] = float((layer.get_delta_weight(kind) - total).norm() / total.norm())
    model.add_weighted_adapter(["a"], [-0.5], "away from a", combination_type="linear")
    one = layer.get_delta_weight("away from a") + 0.5 * layer.get_delta_weight("a")
    away["linear, one adapter"] = float(one.norm() / total.norm())
print("distance from the sum, in its own length:", {kind: round(value, 3) for kind, value in away.items()})
assert not said and away["cat"] < 1e-5 and away["linear, one adapter"] < 1e-5 and 0.5 < away["linear"] < 1.5, "changed"
PY
