"""Decoders of Hugging Face's transformers as rankers: a history of tokens, and those of a candidate behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma2Model,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5Model,
)  # fmt: skip

import rankhoist
from rankhoist import Workload

WIDTH, IDS, HISTORY, ITEM = 32, 100, 20, 2
SIZES: dict[str, Any] = {
    "vocab_size": IDS, "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
OFFSETS = [0, 4, 4, 11]


class Ranker(nn.Module):
    """The score of the last token; token 0 is padding, in front."""

    def __init__(self, decoder: nn.Module, padded: bool) -> None:
        super().__init__()
        self.decoder, self.padded, self.top = decoder, padded, nn.Linear(WIDTH, 1)

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        tokens = torch.cat([history, item], 1)
        mask = {"attention_mask": (tokens != 0).long()} if self.padded else {}
        made = self.decoder(input_ids=tokens, use_cache=False, **mask).last_hidden_state
        score: Tensor = self.top(made[:, -1]).squeeze(1)
        return score


class EncoderAndDecoder(nn.Module):
    """The history is read by the encoder, the candidate by the decoder."""

    def __init__(self, both: nn.Module) -> None:
        super().__init__()
        self.both, self.top = both, nn.Linear(WIDTH, 1)

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        made = self.both(input_ids=history, decoder_input_ids=item, use_cache=False).last_hidden_state
        score: Tensor = self.top(made[:, -1]).squeeze(1)
        return score


def gpt2(padded: bool = False) -> nn.Module:
    return Ranker(GPT2Model(GPT2Config(vocab_size=IDS, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=64)), padded)


def t5() -> nn.Module:
    config = T5Config(vocab_size=IDS, d_model=WIDTH, d_ff=64, d_kv=8, num_layers=2, num_heads=4)
    return EncoderAndDecoder(T5Model(config))


SLOW: dict[str, Callable[[], nn.Module]] = {
    "gpt2": gpt2,
    "llama": lambda: Ranker(LlamaModel(LlamaConfig(**SIZES)), True),
    "llama, attention written out": lambda: Ranker(
        LlamaModel(LlamaConfig(**SIZES, attn_implementation="eager")).float(), True
    ),
    "qwen3": lambda: Ranker(Qwen3Model(Qwen3Config(**SIZES, head_dim=8)), True),
    "mistral, windows": lambda: Ranker(MistralModel(MistralConfig(**SIZES, sliding_window=8)), True),
    "gemma2": lambda: Ranker(Gemma2Model(Gemma2Config(**SIZES, head_dim=8, sliding_window=8)), False),
    "t5": t5,
}


def check(model: nn.Module, saved: float, error: float) -> None:
    """Scores of three requests, one without candidates, two with padding in front; and how much work is saved."""
    generator = torch.Generator().manual_seed(1)

    def tokens(rows: int, length: int) -> Tensor:
        return torch.randint(1, IDS, (rows, length), generator=generator)

    example = {"history": tokens(4, HISTORY), "item": tokens(4, ITEM)}
    hoisted = rankhoist.hoist(model.eval(), example, context=["history"], workload=Workload(candidates=200))
    history, item = tokens(3, HISTORY), tokens(OFFSETS[-1], ITEM)
    history[0, :6], history[2, :1] = 0, 0
    owner = torch.repeat_interleave(torch.arange(3), torch.tensor(OFFSETS).diff())
    with torch.no_grad():
        want = model(history[owner], item)
    torch.testing.assert_close(hoisted(history, item, request_offsets=OFFSETS), want, rtol=error, atol=error)
    total = hoisted.report().total()
    assert total.before.multiply_adds > saved * total.after.multiply_adds


def test_what_a_decoder_computes_of_the_history_is_the_requests():
    torch.manual_seed(0)
    check(gpt2(padded=True).double(), 8.0, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_other_decoders(name: str):
    torch.manual_seed(0)
    check(SLOW[name](), 6.0, 1e-5)
