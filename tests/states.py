"""States that users have their pipelines in: each made in the real classes, at a tiny random size."""

import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import accelerate
import diffusers
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image

from tiny import still, tiny_components, tiny_pipeline, tiny_sd3_pipeline, tiny_xl_pipeline

NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
PICTURE = Image.new("RGB", (16, 16), (200, 30, 90))


class State(NamedTuple):
    """A pipeline, and what its calls are given."""

    pipe: Any
    call: dict[str, Any] = {}  # noqa: RUF012
    embeds: Callable[[Any, str, str], dict[str, Any]] | None = None
    """How a prompt and a negative prompt are handed over, where not as words."""


def with_class(name: str, **more: Any) -> Any:
    return still(getattr(diffusers, name)(**tiny_components(), **NO_CHECKER, **more))


def consistency() -> State:
    parts = tiny_components()
    sizes = {k: v for k, v in parts["unet"].config.items() if not k.startswith("_")} | {"time_cond_proj_dim": 8}
    torch.manual_seed(0)
    parts["unet"] = diffusers.UNet2DConditionModel(**sizes)
    parts["scheduler"] = diffusers.LCMScheduler.from_config(parts["scheduler"].config)
    return State(still(diffusers.StableDiffusionPipeline(**parts, **NO_CHECKER)))


def controlled() -> State:
    torch.manual_seed(0)
    net = diffusers.ControlNetModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=2,
        conditioning_embedding_out_channels=(16, 32),
    )
    for block in [*net.controlnet_down_blocks, net.controlnet_mid_block]:
        for p in block.parameters():
            p.data.normal_(0, 0.2)  # zero, as they are made, would control nothing
    return State(with_class("StableDiffusionControlNetPipeline", controlnet=net), {"image": PICTURE})


def adapted() -> State:
    torch.manual_seed(0)
    net = diffusers.T2IAdapter(in_channels=3, channels=(32, 64), num_res_blocks=1, downscale_factor=2)
    pipe = with_class("StableDiffusionAdapterPipeline", adapter=net)
    return State(still(pipe), {"image": PICTURE, "height": 16, "width": 16})


def adapted_xl() -> State:
    """A pipeline that tells nobody how it rescales, but the loop itself."""
    torch.manual_seed(0)
    sizes = {"in_channels": 3, "channels": (32, 64), "num_res_blocks": 1, "downscale_factor": 4}
    net = diffusers.T2IAdapter(**sizes, adapter_type="full_adapter_xl")
    pipe = diffusers.StableDiffusionXLAdapterPipeline(**tiny_xl_pipeline().components, adapter=net)
    return State(still(pipe), {**XL, "image": PICTURE, "guidance_rescale": 0.7})


def image_prompted() -> State:
    pipe = still(tiny_pipeline())
    torch.manual_seed(0)
    width, tokens = 32, 4  # diffusers takes four for granted
    projection = {
        "proj.weight": torch.randn(tokens * width, 8),
        "proj.bias": torch.randn(tokens * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    layers: dict[str, torch.Tensor] = {}
    number = 1
    for name, processor in pipe.unet.attn_processors.items():
        if name.endswith("attn2.processor"):
            inner = pipe.unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
            layers[f"{number}.to_k_ip.weight"] = torch.randn(inner, width) * 0.3
            layers[f"{number}.to_v_ip.weight"] = torch.randn(inner, width) * 0.3
            number += 2
        assert processor is not None
    pipe.unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": layers}])
    seen = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(3))
    return State(still(pipe), {"ip_adapter_image_embeds": [seen]})


def lora_folder() -> str:
    made, folder = tiny_pipeline(), tempfile.mkdtemp()
    torch.manual_seed(9)
    modules = ["to_q", "to_k", "to_v", "to_out.0"]
    made.unet.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights=False, target_modules=modules))
    layers = {n: t * 0.3 for n, t in get_peft_model_state_dict(made.unet).items()}
    diffusers.StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)
    return folder


def lora(fused: bool) -> State:
    pipe = still(tiny_pipeline())
    pipe.load_lora_weights(lora_folder())
    if fused:
        pipe.fuse_lora()
        pipe.unload_lora_weights()
    return State(still(pipe))


def invented() -> State:
    pipe = still(tiny_pipeline())
    pipe.load_textual_inversion({"<v>": torch.randn(32, generator=torch.Generator().manual_seed(1))})
    return State(still(pipe))


def changed(change: Callable[[Any], Any], make: Callable[[], Any] = tiny_pipeline, **call: Any) -> State:
    pipe = still(make())
    change(pipe)
    return State(pipe, call)


def blocks_compiled(pipe: Any) -> None:
    torch._dynamo.reset()
    for module in pipe.unet.modules():
        if type(module).__name__ == "BasicTransformerBlock":
            module.compile(backend="eager")


def whole_compiled(pipe: Any) -> None:
    torch._dynamo.reset()
    pipe.unet = torch.compile(pipe.unet, backend="eager")


def offloaded(pipe: Any) -> None:
    """What ``enable_sequential_cpu_offload`` does, on a machine without accelerator."""
    for module in (pipe.unet, pipe.vae):
        accelerate.cpu_offload(module, torch.device("cpu"))


def cast_by_layer(pipe: Any) -> None:
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def quanto(pipe: Any) -> None:
    from optimum.quanto import freeze, qint8, quantize

    quantize(pipe.unet, weights=qint8)
    freeze(pipe.unet)


def torchao(pipe: Any) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(pipe.unet, Int8WeightOnlyConfig())


def merged_tokens(pipe: Any) -> None:
    import tomesd

    tomesd.apply_patch(pipe, ratio=0.5, max_downsample=2, use_rand=False)


def cached(pipe: Any) -> None:
    from DeepCache import DeepCacheSDHelper

    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=2, cache_branch_id=0)
    helper.enable()


def weighted(pipe: Any, prompt: str, negative: str) -> dict[str, Any]:
    """What compel makes of words without weights, which are the pipeline's own vectors."""
    from compel import CompelForSD

    made = CompelForSD(pipe)(prompt, negative_prompt=negative)
    return {"prompt_embeds": made.embeds, "negative_prompt_embeds": made.negative_embeds}


def weighted_more(pipe: Any, prompt: str, negative: str) -> dict[str, Any]:
    """What compel makes of words with weights: vectors that no text gives."""
    return weighted(pipe, f"({prompt})1.4", negative)


def long(pipe: Any, prompt: str, negative: str) -> dict[str, Any]:
    """Texts of two contexts: that of the words, and an empty one."""
    one, no = (pipe.encode_prompt(text, "cpu", 1, False)[0] for text in (prompt, negative))
    empty = pipe.encode_prompt("", "cpu", 1, False)[0]
    return {"prompt_embeds": torch.cat([one, empty], 1), "negative_prompt_embeds": torch.cat([no, empty], 1)}


def sibling() -> State:
    """A pipeline that shares the parts of the one that edits are attached to."""
    first = still(tiny_pipeline())
    second = diffusers.StableDiffusionImg2ImgPipeline.from_pipe(first)
    state = State(still(second), {"image": torch.full((1, 3, 16, 16), 0.5), "strength": 0.99})
    state.pipe.first = first
    return state


def without_middle() -> State:
    parts = tiny_components()
    sizes = {k: v for k, v in parts["unet"].config.items() if not k.startswith("_")} | {"mid_block_type": None}
    torch.manual_seed(0)
    parts["unet"] = diffusers.UNet2DConditionModel(**sizes)
    return State(still(diffusers.StableDiffusionPipeline(**parts, **NO_CHECKER)))


XL = {"height": 16, "width": 16}
STATES: dict[str, Callable[[], State]] = {
    "as loaded": lambda: State(still(tiny_pipeline())),
    "SDXL": lambda: State(tiny_xl_pipeline(), XL),
    "SDXL, other sizes and crops": lambda: State(
        tiny_xl_pipeline(),
        {"height": 32, "width": 24, "original_size": (64, 64), "crops_coords_top_left": (8, 8)},
    ),
    "SD3": lambda: State(tiny_sd3_pipeline(), XL),
    "LCM (no guidance)": consistency,
    "guidance_rescale": lambda: State(still(tiny_pipeline()), {"guidance_rescale": 0.7}),
    "ControlNet": controlled,
    "T2I-Adapter": adapted,
    "SDXL, T2I-Adapter and guidance_rescale": adapted_xl,
    "IP-Adapter": image_prompted,
    "perturbed attention (PAG)": lambda: State(with_class("StableDiffusionPAGPipeline", pag_applied_layers="up")),
    "self-attention guidance (SAG)": lambda: State(with_class("StableDiffusionSAGPipeline", image_encoder=None)),
    "from_pipe sibling": sibling,
    "textual inversion": invented,
    "compel": lambda: State(still(tiny_pipeline()), embeds=weighted),
    "compel, with weights": lambda: State(still(tiny_pipeline()), embeds=weighted_more),
    "long embeddings": lambda: State(still(tiny_pipeline()), embeds=long),
    "LoRA loaded": lambda: lora(fused=False),
    "LoRA fused": lambda: lora(fused=True),
    "fused projections": lambda: changed(lambda pipe: pipe.fuse_qkv_projections()),
    "attention slicing": lambda: changed(lambda pipe: pipe.enable_attention_slicing()),
    "compiled": lambda: changed(blocks_compiled),
    "compiled, the whole UNet": lambda: changed(whole_compiled),
    "quantised (quanto)": lambda: changed(quanto),
    "quantised (torchao)": lambda: changed(torchao),
    "offloaded (sequential)": lambda: changed(offloaded),
    "layerwise casting": lambda: changed(cast_by_layer),
    "token merging (tomesd)": lambda: changed(merged_tokens),
    "DeepCache": lambda: changed(cached),
}
