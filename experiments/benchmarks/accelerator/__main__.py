"""Proves and measures what is worth knowing of the GPU, or the TPU host, that is here for a few minutes.

COMMAND   python -m experiments.benchmarks.accelerator --output=results/accelerator
          python -m experiments.benchmarks.accelerator --page=results/accelerator     # into docs/, with the card's name
TIME      480 seconds at most (--seconds), in parts that have a share each and leave to the next what they do not take.
          A part is a process of its own: one that hangs, crashes or is cut is a line, and the rest goes on.
PARTS     card     packages, driver, what attention is lowered to; a quickstart step equal to the CPU's; ceilings
          proof    attention kernels against the dense oracle, beside plain XLA: numbers, heads, soft cap, window
          tiles    block sizes of the kernels; the fastest serves what comes after
          speed    attention in TFLOP/s and by live tile, beside cuDNN and the whole mask in XLA
          table    the paper's table on a 1B shape: pairs/s, MFU, peak memory beside what was planned, S_time, ...
          versus   SmolLM2-135M's shape against TRL, only where torch with CUDA and TRL are here already
          Where the proof found a kernel wrong for the table's heads, that is measured with live tiles in plain XLA.
OUTPUT    findings.jsonl grows line by line; page.md and plots are written after every part; log.txt is what the parts
          printed. The command goes on in a folder that has findings: what has begun there is not begun again, so a
          second try spends its time on the rest. Take another folder for another machine.
MACHINE   Bare, perhaps without a network: requirements.txt with jax[cuda12], jax[cuda13] or jax[tpu]. Of the former the
          parts need jax, flax, optax, orbax-checkpoint, grain, jaxtyping, numpy, scipy, safetensors, lazy-loader, tqdm,
          matplotlib, packaging and absl-py. Where an image has jax with its plugin and most of these, the rest is
          carried as wheels of that machine's Python, 5 MB where it is grain with what grain needs:

              pip download --no-deps --only-binary=:all: --python-version=3.12 --platform=manylinux2014_x86_64 \\
                  --platform=manylinux_2_28_x86_64 --dest=wheels grain array-record portpicker
              python3 -m pip install --no-index --no-deps --target=/tmp/site wheels/*.whl      # there
              PYTHONPATH=/tmp/site python3 -m experiments.benchmarks.accelerator --output=...

          What is missing all the same is in the first lines of page.md, and the reason of every case that lacked it.
BEFORE    `--size=tiny` runs every part on a CPU, with kernels emulated and numbers that mean nothing;
          `python -m experiments.benchmarks.accelerator.predict h200` plans the table's memory for that chip.
"""

from pathlib import Path

from absl import app, flags

from experiments.benchmarks.accelerator import findings, parts
from experiments.command import start_command

DOCS = parts.ROOT / "docs"


def define_flags() -> None:
    flags.DEFINE_string("output", None, "Folder for findings, page and plots.")
    flags.DEFINE_string("page", None, "Turns this folder's findings into a page of docs/, and runs nothing.")
    flags.DEFINE_integer("seconds", 480, "That everything may take.", lower_bound=1)
    names = [part.name for part in parts.PARTS]
    flags.DEFINE_list("parts", names, f"Which, in this order: {', '.join(names)}.")
    flags.DEFINE_enum("size", "full", ["full", "tiny"], "tiny: what a CPU can emulate.")


def chosen(names: list[str]) -> list[parts.Part]:
    unknown = set(names) - {part.name for part in parts.PARTS}
    if unknown:
        raise app.UsageError(
            f"--parts: {', '.join(sorted(unknown))} is none of {', '.join(p.name for p in parts.PARTS)}"
        )
    return [part for part in parts.PARTS if part.name in names]


def main(_) -> None:
    options = flags.FLAGS
    if bool(options.output) == bool(options.page):
        raise app.UsageError(
            "say either --output=DIR, to measure, or --page=DIR, to write what was measured into docs/"
        )
    if options.page:
        from experiments.benchmarks.accelerator import page

        try:
            print(page.write_docs(Path(options.page), DOCS))
        except ValueError as error:
            raise app.UsageError(str(error)) from error
        return
    folder = Path(options.output).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if begun := len(findings.read(folder)):
        print(f"{folder} has {begun} findings: what has begun there is not begun again", flush=True)
    parts.run_parts(chosen(options.parts), folder, options.seconds, options.size, lambda: write_page(folder))
    print(write_page(folder))


def write_page(folder: Path) -> str:
    """The page of what is known; where it cannot be written that is a finding, and the parts go on."""
    try:
        from experiments.benchmarks.accelerator import page

        return page.write(folder, folder / "page.md", folder)
    except Exception as error:
        findings.add(folder, "page", "failure", case="page", error=f"{type(error).__name__}: {error}")
        return f"no page: {error}"


if __name__ == "__main__":
    define_flags()
    start_command(main)
