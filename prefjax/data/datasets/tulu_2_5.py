"""Tulu 2.5 preference data, fourteen sources in one format."""

from prefjax.data.dataset_entry import Dataset, HubParquet, Reading, hub_page
from prefjax.data.datasets import DATASETS

_REPOSITORY = "allenai/tulu-2.5-preference-data"
_PARTS = (
    *("preference_big_mixture", "ultrafeedback_mean_aspects", "helpsteer", "hh_rlhf", "shp_2", "nectar"),
    *("stack_exchange_paired", "chatbot_arena_2023", "chatbot_arena_2024", "capybara", "orca_dpo_pairs"),
    *("alpaca_farm_gpt4_pref", "alpaca_farm_human_pref", "prm800k_pairs_phase2"),
)
DATASETS.add(
    Dataset(
        name="tulu_2_5",
        title="Tulu 2.5 preference data, fourteen sources in one format",
        homepage=hub_page(_REPOSITORY),
        licence="ODC-BY; parts have licences of their own",
        paper="arXiv 2406.09279",
        variants=tuple(Reading(name=part).variant({"train": HubParquet(_REPOSITORY, part)}) for part in _PARTS),
        note="The source's splits are its parts.",
    ),
    __name__,
)
