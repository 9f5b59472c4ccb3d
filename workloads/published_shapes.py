"""The parameter shapes of well-known models, by the names under which they are published."""

from __future__ import annotations

from collections.abc import Callable, Iterator

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def gpt2_124m() -> Shapes:
    """Yield GPT-2's 148 tensors, 124,439,808 parameters: openai-community/gpt2, whose head is tied to ``wte``.

    Its projections are stored input first, as the checkpoint has them.
    """
    width = 768
    yield "wte.weight", (50257, width)
    yield "wpe.weight", (1024, width)
    for layer in range(12):
        block = f"h.{layer}"
        yield from _norm(f"{block}.ln_1", width)
        yield from _affine(f"{block}.attn.c_attn", (width, 3 * width), 3 * width)
        yield from _affine(f"{block}.attn.c_proj", (width, width), width)
        yield from _norm(f"{block}.ln_2", width)
        yield from _affine(f"{block}.mlp.c_fc", (width, 4 * width), 4 * width)
        yield from _affine(f"{block}.mlp.c_proj", (4 * width, width), width)
    yield from _norm("ln_f", width)


def resnet_50() -> Shapes:
    """Yield ResNet-50's 161 tensors, 25,557,032 parameters: torchvision's resnet50."""
    yield "conv1.weight", (64, 3, 7, 7)
    yield from _norm("bn1", 64)
    inputs = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for index in range(blocks):
            block = f"layer{stage + 1}.{index}"
            yield f"{block}.conv1.weight", (width, inputs, 1, 1)
            yield from _norm(f"{block}.bn1", width)
            yield f"{block}.conv2.weight", (width, width, 3, 3)
            yield from _norm(f"{block}.bn2", width)
            yield f"{block}.conv3.weight", (4 * width, width, 1, 1)
            yield from _norm(f"{block}.bn3", 4 * width)
            if index == 0:
                yield f"{block}.downsample.0.weight", (4 * width, inputs, 1, 1)
                yield from _norm(f"{block}.downsample.1", 4 * width)
            inputs = 4 * width
    yield from _affine("fc", (1000, inputs), 1000)


def vit_b_16() -> Shapes:
    """Yield ViT-B/16's 152 tensors, 86,567,656 parameters: torchvision's vit_b_16."""
    width = 768
    yield "class_token", (1, 1, width)
    yield from _affine("conv_proj", (width, 3, 16, 16), width)
    yield "encoder.pos_embedding", (1, 197, width)
    for layer in range(12):
        block = f"encoder.layers.encoder_layer_{layer}"
        yield from _norm(f"{block}.ln_1", width)
        yield f"{block}.self_attention.in_proj_weight", (3 * width, width)
        yield f"{block}.self_attention.in_proj_bias", (3 * width,)
        yield from _affine(f"{block}.self_attention.out_proj", (width, width), width)
        yield from _norm(f"{block}.ln_2", width)
        yield from _affine(f"{block}.mlp.0", (4 * width, width), 4 * width)
        yield from _affine(f"{block}.mlp.3", (width, 4 * width), width)
    yield from _norm("encoder.ln", width)
    yield from _affine("heads.head", (1000, width), 1000)


def llama_1b() -> Shapes:
    """Yield Llama 3.2 1B's 146 tensors, 1,235,814,400 parameters: meta-llama/Llama-3.2-1B, head tied."""
    width, hidden, key_value = 2048, 8192, 512
    yield "model.embed_tokens.weight", (128256, width)
    for layer in range(16):
        block = f"model.layers.{layer}"
        yield f"{block}.self_attn.q_proj.weight", (width, width)
        yield f"{block}.self_attn.k_proj.weight", (key_value, width)
        yield f"{block}.self_attn.v_proj.weight", (key_value, width)
        yield f"{block}.self_attn.o_proj.weight", (width, width)
        yield f"{block}.mlp.gate_proj.weight", (hidden, width)
        yield f"{block}.mlp.up_proj.weight", (hidden, width)
        yield f"{block}.mlp.down_proj.weight", (width, hidden)
        yield f"{block}.input_layernorm.weight", (width,)
        yield f"{block}.post_attention_layernorm.weight", (width,)
    yield "model.norm.weight", (width,)


PUBLISHED: dict[str, Callable[[], Shapes]] = {
    "gpt2-124m": gpt2_124m,
    "resnet-50": resnet_50,
    "vit-b-16": vit_b_16,
    "llama-1b": llama_1b,
}


def _affine(name: str, weight: tuple[int, ...], outputs: int) -> Shapes:
    yield f"{name}.weight", weight
    yield f"{name}.bias", (outputs,)


def _norm(name: str, width: int) -> Shapes:
    yield from _affine(name, (width,), width)
