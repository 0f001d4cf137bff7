"""How long preparing a million chats takes and what memory it needs, by any number of processes.

COMMAND   python -m experiments.benchmarks.preparing --output=results/preparing
TIME      about ten minutes on two cores for the 1,100,000 records of the defaults
PROTOCOL  Pairs of chats are drawn word by word from a Zipf law over 50,000 invented words; a byte-level BPE tokenizer
          with the ChatML template is trained on some, unless --tokenizer names another. A fresh Python prepares each
          file as the trainer does: read, hold out, adapt, render, tokenise, write with digests, index. Every number of
          processes must write the same bytes.
COLUMNS   records/s: of wall time; speed-up: against the first number of processes on the same records; peak memory: the
          most that all processes together held at once, shared pages counted once (PSS, looked at every half second).
"""

import hashlib
import itertools
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
from absl import flags

from experiments.benchmarks import sweep
from experiments.command import start_command

_WORDS = 50_000
_BLOCK = 1000  # records drawn at once
_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Alone, so that the memory is that of preparing: no jax, no plots.
_PREPARE = """
import json, sys
from pathlib import Path
from prefjax.data.prepare import DataConfig, prepare
from prefjax.data.tokenizers import load_tokenizer
from prefjax.requirements import Requirements
data, tokenizer, folder, workers = sys.argv[1:]
config = DataConfig(train=data, eval=data, tokenizer=tokenizer, workers=int(workers))
trees = prepare(config, Requirements(2), load_tokenizer(tokenizer), Path(folder), split="train", progress=True)
print(json.dumps({"trees": len(trees), "tokens": trees.manifest["lengths"]["shared_tokens"]}))
"""
COLUMNS = (
    "records: {records:,} | processes: {workers} | seconds: {seconds:.0f} | records/s: {rate:,.0f} | "
    "speed-up: {speedup:.2f}x | tokens a record: {tokens:.0f} | peak memory: {peak:,.0f} MB"
)


def texts(count: int, words: int, seed: int = 0) -> Iterator[tuple[str, str, str]]:
    """Prompts with two responses each, of `words` words on average, the prompt a third of that."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlcumwfgypbvk"))
    lengths = rng.integers(2, 10, _WORDS)
    known = np.array(["".join(rng.choice(letters, length)) for length in lengths], object)
    chance = 1 / np.arange(2, _WORDS + 2)
    law = np.cumsum(chance / chance.sum())
    for begin in range(0, count, _BLOCK):
        sizes = np.maximum(1, rng.poisson([words / 3, words, words], (min(_BLOCK, count - begin), 3)))
        drawn = known[np.minimum(np.searchsorted(law, rng.random(sizes.sum())), _WORDS - 1)]
        parts = iter(np.split(drawn, np.cumsum(sizes.ravel())[:-1]))
        for _ in range(len(sizes)):
            yield tuple(" ".join(next(parts)).capitalize() + "." for _ in range(3))


def write_records(path: Path, count: int, words: int) -> None:
    """Chats as JSON lines."""
    turn = lambda role, text: [{"role": role, "content": text}]
    with path.open("w") as file:
        for prompt, chosen, rejected in texts(count, words):
            row = {"prompt": turn("user", prompt), "chosen": turn("assistant", chosen)}
            file.write(json.dumps(row | {"rejected": turn("assistant", rejected)}) + "\n")


def write_tokenizer(folder: Path, given: Iterable[str], tokens: int = 8000) -> None:
    """A byte-level BPE tokenizer of at most so many tokens, trained on the texts given."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special, alphabet = ["<|im_start|>", "<|im_end|>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=tokens, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(given, trainer)
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template": _CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def family_memory(process: int) -> int:
    """Bytes of a process and of those that it started, shared pages divided among them; 0 where it has ended."""
    try:
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return 0
    own = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return 1024 * own + sum(family_memory(int(child)) for child in children)


def measure(data: Path, tokenizer: str, folder: Path, workers: int) -> dict[str, Any]:
    """One line of the table, without the number of records."""
    command = [sys.executable, "-c", _PREPARE, str(data), tokenizer, str(folder), str(workers)]
    began, peak, ended = time.perf_counter(), 0, threading.Event()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:

        def watch() -> None:
            nonlocal peak
            while not ended.wait(0.5):
                peak = max(peak, family_memory(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            said = process.stdout.read()
        finally:
            ended.set()
            watcher.join()
    if process.returncode:
        raise RuntimeError(f"preparing ended with status {process.returncode}")
    seconds = time.perf_counter() - began
    return {"workers": workers, "seconds": seconds, "peak_bytes": peak, **json.loads(said.splitlines()[-1])}


def digest(folder: Path) -> str:
    """Of all files that were prepared, names and bytes."""
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole.update(str(path.relative_to(folder)).encode())
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def plot(rows: list[sweep.Row]) -> matplotlib.figure.Figure:
    """Records per second, and the peak of memory, of every file and number of processes."""
    names = [f"{row['records']:,} by {row['workers']}" for row in rows]
    figure, axes = sweep.panels(9.6, 1.2 + 0.4 * len(rows), 2, sharey=True)
    for axis, field, label in zip(axes, ("rate", "peak"), ("records per second", "peak memory, MB"), strict=True):
        axis.barh(names, [row[field] for row in rows], 0.6, color=sweep.BLUE)
        axis.set(xlabel=label)
    return figure


def define_flags() -> None:
    sweep.define_output()
    flags.DEFINE_list("records", ["100000", "1000000"], "Numbers of records, of one file each.")
    flags.DEFINE_list("workers", ["1", "2"], "Numbers of processes that encode.")
    flags.DEFINE_string("tokenizer", "", "byte, or a Hugging Face tokenizer folder; empty: one trained on the records.")
    flags.DEFINE_integer("words", 60, "Of a response, on average; a prompt has a third.", lower_bound=3)


def main(_) -> None:
    options, rows = flags.FLAGS, []
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output) as place:
        tokenizer = options.tokenizer or str(Path(place) / "tokenizer")
        if not options.tokenizer:
            write_tokenizer(Path(tokenizer), itertools.chain.from_iterable(texts(500, options.words)))
        for count in map(int, options.records):
            data = Path(place) / f"{count}.jsonl"
            write_records(data, count, options.words)
            made = set()
            for workers in map(int, options.workers):
                with tempfile.TemporaryDirectory(dir=place) as folder:
                    row = {"records": count, **measure(data, tokenizer, Path(folder), workers)}
                    made.add(digest(Path(folder)))
                first = next((other for other in rows if other["records"] == count), row)
                row |= {"rate": count / row["seconds"], "speedup": first["seconds"] / row["seconds"]}
                rows.append(row | {"peak": row["peak_bytes"] / 1e6, "tokens": row["tokens"] / row["trees"]})
                print(sweep.table(COLUMNS, rows[-1:]).splitlines()[-1], flush=True)
            assert len(made) == 1, f"{options.workers} processes wrote different bytes"
            data.unlink()
    text = f"Pairs of chats with {options.words} words a response; a fresh Python each.\n"
    text += f"{sweep.machine_line()}.\n\n{sweep.table(COLUMNS, rows)}"
    sweep.write(output, {"words": options.words, "rows": rows}, text, plot(rows))


if __name__ == "__main__":
    define_flags()
    start_command(main)
