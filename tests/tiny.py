"""Real diffusers and transformers classes at a tiny random size: pipelines of each family, and their parts."""

import string

import diffusers
import torch
import transformers


def tokenizer(more: tuple[tuple[str, str], ...] = ()) -> transformers.CLIPTokenizer:
    letters = list(string.ascii_lowercase + string.digits + ",.->")
    words = letters + [f"{c}</w>" for c in letters]
    merges = [("d", "o"), ("do", "g</w>"), ("c", "h"), ("ch", "u"), *more]
    words += ["".join(m) for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {w: i for i, w in enumerate(words)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=16)


def tiny_components(prediction: str = "epsilon", vae: str = "kl", seed: int = 0) -> dict:
    torch.manual_seed(seed)
    words = tokenizer()
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=16,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=2,
    )
    if vae == "kl":
        coder = diffusers.AutoencoderKL(
            block_out_channels=(32, 32),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            sample_size=16,
        )
    else:
        coder = diffusers.AutoencoderTiny(
            encoder_block_out_channels=(16, 16),
            decoder_block_out_channels=(16, 16),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        )
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction,
    )
    parts = {"vae": coder, "text_encoder": text, "tokenizer": words, "unet": unet, "scheduler": scheduler}
    return {k: v.eval().requires_grad_(False) if hasattr(v, "eval") else v for k, v in parts.items()}


def tiny_clip(words, width: int, projected: bool):
    settings = transformers.CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=width,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return (transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel)(settings)


def tiny_vae(channels: int = 4, **options) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        sample_size=16,
        **options,
    )


def still(pipe):
    """A pipeline that neither learns nor shows a bar."""
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_xl_pipeline(zeros: bool = True, seed: int = 0) -> diffusers.StableDiffusionXLPipeline:
    torch.manual_seed(seed)
    words, others = tokenizer(), tokenizer()
    others.pad_token = ">"  # as SDXL's second tokenizer, it pads with a word
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32 + 48,
        attention_head_dim=2,
        transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 48,
        use_linear_projection=True,
    )
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    )
    return still(
        diffusers.StableDiffusionXLPipeline(
            vae=tiny_vae(),
            text_encoder=tiny_clip(words, 32, projected=False),
            text_encoder_2=tiny_clip(words, 48, projected=True),
            tokenizer=words,
            tokenizer_2=others,
            unet=unet,
            scheduler=scheduler,
            force_zeros_for_empty_prompt=zeros,
            add_watermarker=False,
        )
    )


def tiny_sd3_pipeline(t5: bool = True, seed: int = 0) -> diffusers.StableDiffusion3Pipeline:
    torch.manual_seed(seed)
    words, others = tokenizer(), tokenizer()
    others.pad_token = ">"
    third, tokenizer_3 = None, None
    if t5:
        pieces = [
            ("<pad>", 0.0),
            ("</s>", 0.0),
            ("<unk>", 0.0),
            ("\u2581", -2.0),
            *((c, -3.0) for c in string.ascii_lowercase),
        ]
        tokenizer_3 = transformers.T5Tokenizer(vocab=pieces, extra_ids=0)
        third = transformers.T5EncoderModel(
            transformers.T5Config(vocab_size=len(pieces), d_model=96, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
        )
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=96,
        caption_projection_dim=32,
        pooled_projection_dim=32 + 48,
        out_channels=4,
        pos_embed_max_size=8,
    )
    return still(
        diffusers.StableDiffusion3Pipeline(
            transformer=transformer,
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=tiny_vae(shift_factor=0.06, scaling_factor=1.5),
            text_encoder=tiny_clip(words, 32, projected=True),
            tokenizer=words,
            text_encoder_2=tiny_clip(words, 48, projected=True),
            tokenizer_2=others,
            text_encoder_3=third,
            tokenizer_3=tokenizer_3,
        )
    )


FLUX_READS = 24
"""Tokens that the tiny FLUX's T5 reads."""


def tiny_flux_pipeline(told: bool = True, seed: int = 0, channels: int = 4) -> diffusers.FluxPipeline:
    """FLUX, told the scale of guidance and with its shift (dev), or neither (schnell); T5 reads "a" as two tokens."""
    torch.manual_seed(seed)
    words = tokenizer((("t", "h"), ("th", "e</w>")))
    pieces = [
        *(("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *((c, -3.0) for c in string.ascii_letters)),
        *((f"\u2581{word}", -1.0) for word in ("the", "dog", "cat")),
    ]
    t5_tokenizer = transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=FLUX_READS)
    t5 = transformers.T5EncoderModel(
        transformers.T5Config(vocab_size=len(pieces), d_model=40, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    )
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=4 * channels,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=40,
        pooled_projection_dim=32,
        guidance_embeds=told,
        axes_dims_rope=(4, 4, 8),
    )
    shift = {"use_dynamic_shifting": True, "shift": 3.0} if told else {"shift": 1.0}
    return still(
        diffusers.FluxPipeline(
            transformer=transformer,
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**shift),
            vae=tiny_vae(channels, shift_factor=0.1, scaling_factor=1.5),
            text_encoder=tiny_clip(words, 32, projected=False),
            tokenizer=words,
            text_encoder_2=t5,
            tokenizer_2=t5_tokenizer,
        )
    )


def tiny_pipeline(**options) -> diffusers.StableDiffusionPipeline:
    pipe = diffusers.StableDiffusionPipeline(
        **tiny_components(**options), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sd2_pipeline() -> diffusers.StableDiffusionPipeline:
    """As Stable Diffusion 2, it pads with a word."""
    pipe = tiny_pipeline()
    pipe.tokenizer.pad_token = "."
    return pipe


def tiny_safety_checker(seed: int = 0):
    """Diffusers' safety checker, and how it reads images; by its random thresholds no image is unsafe."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**tower, "vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    vision = {**tower, "image_size": 32, "patch_size": 8}
    torch.manual_seed(seed)
    net = StableDiffusionSafetyChecker(
        transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    )
    for weight in net.parameters():
        weight.data.normal_(0, 0.5)
    for thresholds in (net.concept_embeds_weights, net.special_care_embeds_weights):
        thresholds.data.uniform_(1.1, 1.2)
    return still_net(net), transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)


def still_net(net):
    return net.eval().requires_grad_(False)


def tiny_text_classifier(folder, labels=("SFW", "NSFW"), seed: int = 5, **settings) -> None:
    """A text classifier of the published one's class (DistilBERT), and a tokenizer of letters, written to a folder."""
    folder.mkdir()
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [*string.ascii_lowercase, *(f"##{c}" for c in string.ascii_lowercase)]
    vocabulary = {token: i for i, token in enumerate([*marks, *letters])}
    transformers.BertTokenizer(vocab=vocabulary, model_max_length=24).save_pretrained(folder)
    torch.manual_seed(seed)
    config = transformers.DistilBertConfig(
        vocab_size=len(vocabulary),
        dim=32,
        hidden_dim=64,
        n_layers=2,
        n_heads=2,
        max_position_embeddings=24,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        **settings,
    )
    net = transformers.DistilBertForSequenceClassification(config)
    for weight in net.parameters():
        weight.data.normal_(0, 0.3)
    net.save_pretrained(folder)
