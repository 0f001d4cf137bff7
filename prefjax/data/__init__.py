"""From preference files to packed rows. Names load on first use, so no jax is imported with this package."""

import importlib
from typing import Any

_HOMES = {
    "datasets": ("DATASETS",),
    "datasets.builder": ("build",),
    "datasets.entry": ("Dataset", "Variant", "local_files"),
    "encoding": ("EncodingPolicy", "encode", "encode_all", "encode_prompt", "end_id", "decode_response"),
    "formats": ("Columns", "RecordFormat", "parse"),
    "layout": ("attach_reference", "branch_slots", "build_rows", "lay_out_forest"),
    "methods.registry": ("METHODS", "apply_methods", "parse_methods"),
    "mismatch": ("MismatchedTrees", "mismatched_baselines"),
    "packing": ("Suggestion", "TreeLengths", "first_fit_decreasing", "real_tokens", "suggest_shape", "tree_sizes"),
    "pipeline": ("row_dataset",),
    "planning": ("FixedPrompts", "FullRows", "InOrder", "Planner", "Simulation", "rows_for_prompts", "simulate"),
    "prepare": ("DataConfig", "Need", "WorldOptions"),
    "prompt_rows": ("Prompt", "PromptFile", "encode_prompts", "read_prompts"),
    "readers": ("find_files", "read_records"),
    "records": ("Message", "Record", "inspect"),
    "report": ("Finding", "Notice", "Rejection", "Report"),
    "rows": ("LAYOUTS", "Branches", "PromptRows", "RowShape", "Rows"),
    "sources": ("OpenSource", "Source", "open_sources", "parse_sources", "take_shares"),
    "statistics": ("Statistics", "describe"),
    "store": ("MemoryTrees", "PreparedTrees", "TreeSource", "open_trees", "write_trees"),
    "synthetic": ("World", "preference_probability", "write_jsonl"),
    "tokenizers": ("ByteTokenizer", "HuggingFaceTokenizer", "Tokenizer", "load_tokenizer"),
    "transforms": (
        "Normalization",
        "adapt",
        "keep_best",
        "normalize_targets",
        "rankings_to_pairs",
        "targets_from_scores",
    ),
    "trees": ("TokenTree",),
    "writers": ("to_row", "write_records"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'prefjax.data' has no attribute {name!r}")
    return getattr(importlib.import_module(f"prefjax.data.{_HOME_OF[name]}"), name)
