"""Greedy answers to a few held-out prompts whenever a run evaluates, so that one reads what changes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from prefjax.data.tokenizers import Tokenizer
from prefjax.models import Prompts, SamplingOptions, sample
from prefjax.rows.store import TreeSource
from prefjax.state_files import read_lines, write_whole
from prefjax.training.mesh import row_sharding, row_shards
from prefjax.training.scoring import Setup

FILE = "samples.jsonl"
LONGEST = 64  # tokens of an answer
_WIDTH = 32  # prompts are padded to a multiple of it


class GreedySamples:
    """Answers of the policy as it is, {"step", "prompt", "response"} a line, to the first different prompts.

    On resume, lines past the restored step are cut, and those of that step are not made again.

    Args:
      end_ids: tokens that end a response.
      workdir: where samples.jsonl goes; of several processes the first one writes, and all of them compute.
    """

    def __init__(
        self,
        setup: Setup,
        trees: TreeSource,
        tokenizer: Tokenizer,
        end_ids: Sequence[int],
        *,
        count: int,
        workdir: Path,
        resume_step: int,
    ):
        self._setup, self._tokenizer, self._end_ids = setup, tokenizer, tuple(end_ids)
        _, first = np.unique(trees.prompt_hashes, return_index=True)
        self._prompts = [trees[int(index)].prompt for index in np.sort(first)[:count]]
        self._path = workdir / FILE
        kept = [line for line in read_lines(self._path) if line["step"] <= resume_step]
        self._there = {line["step"] for line in kept}
        if self._prompts and not jax.process_index():
            write_whole(self._path, "".join(json.dumps(line) + "\n" for line in kept))

    def __bool__(self) -> bool:
        return bool(self._prompts)

    def __call__(self, step: int, params: Any) -> None:
        """Answers by the decoder's parameters as they are after a step."""
        if step in self._there:
            return
        said = self._answers(params)
        if not jax.process_index():
            with self._path.open("a") as file:
                file.writelines(json.dumps({"step": step, **answer}) + "\n" for answer in said)

    def _answers(self, params: Any) -> list[dict[str, str]]:
        setup, tokenizer = self._setup, self._tokenizer
        rows = -(-len(self._prompts) // row_shards(setup.mesh)) * row_shards(setup.mesh)
        width = -(-max(map(len, self._prompts)) // _WIDTH) * _WIDTH
        tokens, lengths = np.full((rows, width), tokenizer.pad_id, np.int32), np.zeros(rows, np.int32)
        for row, prompt in enumerate(self._prompts):
            tokens[row, : len(prompt)], lengths[row] = prompt, len(prompt)
        place = lambda array: jax.device_put(array, row_sharding(setup.mesh))
        keys = jax.jit(jax.vmap(jax.random.key))(place(np.arange(rows)))  # of which the most likely token needs none
        asked = Prompts(place(tokens), place(lengths), keys)
        options = SamplingOptions(temperature=0.0, max_new_tokens=LONGEST)
        how = dict(stop_ids=self._end_ids, pad_id=tokenizer.pad_id, mesh=setup.mesh)
        made = multihost_utils.process_allgather(sample(setup.model, params, asked, options, **how), tiled=True)
        text = lambda ids: tokenizer.decode([one for one in ids.tolist() if one not in tokenizer.special_ids])
        return [
            {"prompt": text(prompt), "response": text(made.tokens[row, : made.lengths[row]])}
            for row, prompt in enumerate(self._prompts)
        ]
