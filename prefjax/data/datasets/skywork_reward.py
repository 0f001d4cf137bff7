"""Skywork-Reward-Preference 80K v0.2, selected pairs without overlap with RewardBench."""

from prefjax.data.dataset_entry import Dataset, hub_page, hub_pairs
from prefjax.data.datasets import DATASETS

_REPOSITORY = "Skywork/Skywork-Reward-Preference-80K-v0.2"
DATASETS.add(
    Dataset(
        name="skywork_reward",
        title="Skywork-Reward-Preference 80K v0.2, selected pairs without overlap with RewardBench",
        homepage=hub_page(_REPOSITORY),
        licence="see the source",
        paper="arXiv 2410.18451",
        variants=(hub_pairs(_REPOSITORY, "train"),),
    ),
    __name__,
)
