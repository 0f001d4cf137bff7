"""One decoder, its attention under the prefix-sharing mask, log-probs of response tokens, sampling."""

from prefjax.models.attention import attend, prepare, visible
from prefjax.models.decoder import ModelConfig, apply, init, init_value_head, prompt_values, vocabulary_head
from prefjax.models.logprobs import response_sums, token_logps
from prefjax.models.sampling import Samples, sample

__all__ = [
    "ModelConfig",
    "Samples",
    "apply",
    "attend",
    "init",
    "init_value_head",
    "prepare",
    "prompt_values",
    "response_sums",
    "sample",
    "token_logps",
    "visible",
    "vocabulary_head",
]
