"""One decoder, its attention under the prefix-sharing mask, log-probs of response tokens, sampling."""

from prefjax.models.attention import attend, prepare, visible
from prefjax.models.decoder import ModelConfig, apply, init, init_value_head, prompt_values, vocabulary_head
from prefjax.models.logprobs import Head, TokenScores, response_sums, token_scores
from prefjax.models.sampling import Samples, SamplingOptions, sample

__all__ = [
    "Head",
    "ModelConfig",
    "Samples",
    "SamplingOptions",
    "TokenScores",
    "apply",
    "attend",
    "init",
    "init_value_head",
    "prepare",
    "prompt_values",
    "response_sums",
    "sample",
    "token_scores",
    "visible",
    "vocabulary_head",
]
