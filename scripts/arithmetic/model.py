"""A small Llama in plain PyTorch, written so that its weights are a Hugging Face checkpoint as they are.

Names of modules are those of `transformers.LlamaForCausalLM`, so `state_dict` needs no conversion. RMSNorm, rotary
positions (halves rotated against each other, as Hugging Face does), grouped-query attention, SwiGLU, no biases.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .tokenizer import BOS, EOS, PAD, VOCABULARY, write_tokenizer

MAX_LENGTH: Final = 512
ROPE_THETA: Final = 1000.0
NORM_EPS: Final = 1e-5


@dataclass(frozen=True)
class Shape:
    """Dimensions of a model. `head_dim` must be one that vLLM's CPU attention supports: 32, 64, 80, 96, 112, 128, ..."""

    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int = 32


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width, kv_width = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(width, shape.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: list[Tensor] | None) -> Tensor:
        """Return the attention output for x (B, T, hidden); a cache of keys and values is extended in place."""
        b, t, _ = x.shape
        heads, kv_heads, d = self.shape.heads, self.shape.kv_heads, self.shape.head_dim
        # one product and one rotation for all heads: a thin model spends its time on calls, not on arithmetic
        weight = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])
        qkv = F.linear(x, weight).view(b, t, heads + 2 * kv_heads, d).transpose(1, 2)
        q, k = torch.split(_rotate(qkv[:, : heads + kv_heads], cos, sin), [heads, kv_heads], dim=1)
        v = qkv[:, heads + kv_heads :]
        if cache is not None:
            if cache:
                k, v = torch.cat([cache[0], k], dim=2), torch.cat([cache[1], v], dim=2)
            cache[:] = [k, v]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=t > 1, enable_gqa=kv_heads != heads)
        out: Tensor = self.o_proj(y.transpose(1, 2).reshape(b, t, heads * d))
        return out


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for x (..., hidden)."""
        gate, up = F.linear(x, torch.cat([self.gate_proj.weight, self.up_proj.weight])).chunk(2, dim=-1)
        out: Tensor = self.down_proj(F.silu(gate) * up)
        return out


class Layer(nn.Module):
    """One decoder layer, norms first."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, eps=NORM_EPS)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, eps=NORM_EPS)
        self.mlp = Mlp(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: list[Tensor] | None) -> Tensor:
        """Return the output for x (B, T, hidden)."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Body(nn.Module):
    """Embedding, layers and last norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(len(VOCABULARY), shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden_size, eps=NORM_EPS)


class Llama(nn.Module):
    """A decoder-only transformer over characters."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Body(shape)
        self.lm_head = nn.Linear(shape.hidden_size, len(VOCABULARY), bias=False)
        angle = torch.arange(MAX_LENGTH)[:, None] * ROPE_THETA ** -(torch.arange(0, shape.head_dim, 2) / shape.head_dim)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                # GPT-2's scheme: what is added to the residual stream starts smaller, the more layers add to it
                deep = (2 * shape.layers) ** -0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5 * deep)

    def forward(self, tokens: Tensor, start: int = 0, caches: list[list[Tensor]] | None = None) -> Tensor:
        """Return the last hidden states (B, T, hidden), normalised.

        Args:
            tokens: (B, T).
            start: position of the first of them.
            caches: keys and values of each layer, extended in place.
        """
        end = start + tokens.shape[1]
        cos, sin = self.get_buffer("cos")[start:end], self.get_buffer("sin")[start:end]
        x: Tensor = self.model.embed_tokens(tokens)
        for k, layer in enumerate(self.model.layers):
            x = layer(x, cos, sin, caches[k] if caches is not None else None)
        out: Tensor = self.model.norm(x)
        return out

    @property
    def parameters_count(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.parameters())


def save_pretrained(model: Llama, folder: Path) -> None:
    """Write config, weights (32 bit, safetensors), tokenizer and generation defaults as Hugging Face names them."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    shape = model.shape
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": len(VOCABULARY),
        "max_position_embeddings": MAX_LENGTH,
        "rope_theta": ROPE_THETA,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "rms_norm_eps": NORM_EPS,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "dtype": "float32",
    }
    generation = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD, "do_sample": False}
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    write_tokenizer(folder, MAX_LENGTH)
    weights = {
        name: value.detach().to(torch.float32).contiguous().clone() for name, value in model.state_dict().items()
    }
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})


def load_pretrained(folder: Path) -> Llama:
    """Return the model that `save_pretrained` wrote."""
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape = Shape(
        layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
    )
    model = Llama(shape)
    model.load_state_dict(load_file(str(folder / "model.safetensors")))
    return model
