"""TRL's DPOTrainer on given token ids: steps timed, log-probs before the first step. Needs torch, run on its own.

COMMAND   python run_trl.py REQUEST.json RESULT.json      (an interpreter with requirements.txt; see ../trl.py)

The trainer's own loop runs, with its data loader, collator, gradient accumulation, clipping and optimiser. The dataset
holds token ids already, so the trainer's tokenisation is skipped, and pairs keep their order. The parent reads peak
memory from this process's resource usage. Python, TRL and torch only: prefjax is never imported here.
"""

import importlib.metadata
import json
import os
import platform
import sys
import tempfile
import time

PACKAGES = ("torch", "trl", "transformers", "accelerate", "datasets", "safetensors", "numpy")


def main(request_path: str, result_path: str) -> None:
    with open(request_path) as file:
        request = json.load(file)
    # Thread counts are read when the libraries load; nothing is looked up on a network.
    os.environ.update(OMP_NUM_THREADS=str(request["threads"]), MKL_NUM_THREADS=str(request["threads"]))
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    if request["device"] == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["HF_DATASETS_CACHE"] = scratch
        result = train(request, scratch)
    result["versions"] = {name: importlib.metadata.version(name) for name in PACKAGES}
    result["versions"]["Python"] = platform.python_version()
    with open(result_path, "w") as file:
        json.dump(result, file)


def train(request: dict, scratch: str) -> dict:
    """Trains for `steps` steps, each on all pairs, and says how long each took.

    setting: batch (pairs per forward), attention, sort_by_length (pairs of like length share a forward), compile.
    """
    import torch

    torch.set_num_threads(request["threads"])
    clock = make_clock()
    trainer, seconds_before = make_trainer(request, scratch, clock)
    logps = log_probs(trainer, request["pairs"]) if request["score"] else None
    if request["steps"]:
        trainer.train()
    differences = lambda ticks: [after - before for before, after in zip(ticks[:-1], ticks[1:], strict=True)]
    held = {} if request["device"] == "cpu" else {"peak_gb": torch.cuda.max_memory_allocated() / 1e9}
    return held | {
        "seconds": differences(clock.wall),
        "cpu_seconds": differences(clock.cpu),
        "seconds_before": seconds_before,
        "losses": clock.losses,
        "logps": logps,
    }


def make_clock():
    """Time of every optimiser step, data loading and logging included, and its loss."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self):
            self.wall, self.cpu, self.losses = [], [], []

        def on_train_begin(self, *args, **kwargs):
            self.wall.append(time.perf_counter())
            self.cpu.append(time.process_time())

        on_step_end = on_train_begin

        def on_log(self, args, state, control, logs, **kwargs):
            if "loss" in logs:
                self.losses.append(logs["loss"])

    return Clock()


def make_trainer(request: dict, scratch: str, clock):
    """DPOTrainer on the pairs' ids, all of them one optimiser step, and the seconds that making it took.

    Raises:
      ValueError: the batch does not divide the pairs.
    """
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    class GivenIds(DPOTrainer):
        def _prepare_dataset(self, dataset, *args, **kwargs):
            return dataset

    setting, pairs = request["setting"], request["pairs"]
    if len(pairs) % setting["batch"]:
        raise ValueError(f"batch={setting['batch']} must divide the {len(pairs)} pairs of a step")
    if setting["sort_by_length"]:
        longest = lambda pair: max(len(pair["chosen_ids"]), len(pair["rejected_ids"]))
        pairs = sorted(pairs, key=lambda pair: len(pair["prompt_ids"]) + longest(pair))
    began = time.perf_counter()
    trainer = GivenIds(
        model=request["model"],
        args=DPOConfig(
            output_dir=scratch,
            model_init_kwargs={"dtype": "float32", "attn_implementation": setting["attention"]},
            loss_type=["sigmoid"],
            beta=request["beta"],
            max_length=None,
            precompute_ref_log_probs=request["reference"] == "precomputed",
            per_device_train_batch_size=setting["batch"],
            gradient_accumulation_steps=len(pairs) // setting["batch"],
            gradient_checkpointing=False,
            max_steps=request["steps"],
            learning_rate=request["learning_rate"],
            lr_scheduler_type="constant",
            optim="adamw_torch_fused",
            weight_decay=0.0,
            max_grad_norm=1.0,
            bf16=request["device"] == "cuda",
            train_sampling_strategy="sequential",
            dataloader_drop_last=True,
            dataloader_pin_memory=False,
            torch_compile=setting["compile"],
            use_cpu=request["device"] == "cpu",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(pairs),
        processing_class=AutoTokenizer.from_pretrained(request["model"], trust_remote_code=False),
        callbacks=[clock],
    )
    return trainer, time.perf_counter() - began


def log_probs(trainer, pairs: list[dict]) -> list[list[float]]:
    """[chosen, rejected] sums of every pair, in the request's order."""
    found = []
    for pair in pairs:
        batch = trainer.data_collator([pair])
        chosen, rejected = trainer.compute_ref_log_probs(trainer.model.eval(), batch)
        found.append([chosen.item(), rejected.item()])
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
