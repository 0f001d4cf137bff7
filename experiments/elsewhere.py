"""Names that other libraries give to this one's options, for hints where a name is unknown."""

_WORKDIR = "--workdir"
_NAMES = {
    "train.epochs": ("epochs", "num_epochs", "num_train_epochs"),
    "train.steps": ("max_steps", "num_steps", "steps", "total_steps", "train_steps"),
    "train.log_every": ("logging_steps",),
    "train.eval_every": ("eval_steps",),
    "train.checkpoint_every": ("save_steps",),
    "train.keep_checkpoints": ("save_total_limit",),
    "train.writers": ("report_to",),
    "optimizer.name": ("optim", "optimizer"),
    "optimizer.learning_rate": ("learning_rate", "lr"),
    "optimizer.schedule": ("lr_scheduler_type",),
    "optimizer.warmup_ratio": ("warmup", "warmup_ratio"),
    "optimizer.warmup_steps": ("warmup_steps",),
    "optimizer.weight_decay": ("weight_decay",),
    "optimizer.clip_norm": ("grad_clip", "max_grad_norm"),
    "rows.tokens_per_step": ("batch_size", "per_device_train_batch_size", "train_batch_size"),
    "accumulation": ("gradient_accumulation_steps",),
    "init_from": ("base_model", "model", "model_name", "model_name_or_path"),
    "data.train": ("data", "dataset", "dataset_name", "datasets", "train_file"),
    "data.eval": ("eval_dataset", "eval_file"),
    "data.holdout": ("test_size", "val_set_size"),
    "data.encoding.max_length": ("max_length", "max_seq_len", "max_seq_length", "sequence_len"),
    "data.chat_template": ("chat_template",),
    "objective": ("loss", "loss_type", "objective"),
    "loss.beta": ("beta",),
    "lora.rank": ("lora_r", "lora_rank", "use_peft"),
    "lora.alpha": ("lora_alpha",),
    "lora.targets": ("lora_target_modules",),
    "lora.quantize": ("load_in_4bit", "load_in_8bit"),
    "model.dtype": ("bf16", "dtype", "fp16", "torch_dtype"),
    "model.remat": ("gradient_checkpointing",),
    "mesh.fsdp": ("fsdp",),
    "reference.kind": ("precompute_ref_log_probs",),
    "reference.init_from": ("ref_model", "ref_model_name_or_path"),
    "seed": ("seed",),
    _WORKDIR: ("output_dir", "out_dir", "output_path"),
}
OURS = {name: option for option, names in _NAMES.items() for name in names}


def hint(name: str) -> str:
    """What an unknown option or flag is called here, as the end of a sentence; "" where that is not known."""
    option = OURS.get(name.replace("-", "_").lower())
    if option is None:
        return ""
    return f": here that is {option if option == _WORKDIR else f'--config.{option}'}"
