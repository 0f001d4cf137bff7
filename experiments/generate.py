"""Samples responses from a trained run or a Hugging Face folder, and scores them.

    python -m experiments.generate --model=runs/dpo --prompt="The capital of France is"
    python -m experiments.generate --model=runs/sft --prompts=prompts.jsonl --output=samples.jsonl.gz \\
        --best_of=8 --scorer=implicit:runs/dpo

PROMPTS   `--prompts` takes files whose rows have `prompt` (text or messages) or `messages`, preference data of any
          shape, of which the prompts are taken, and named datasets (docs/datasets.md); each prompt once. What became of
          every row is printed, and written to the manifest.
CHAT      Messages go through the chat template. Text is a user's turn where --model is a Hugging Face folder whose
          tokenizer has a template; a run gets text as it is, as it was trained. --chat and --nochat say otherwise.
          `--prompt` shows both ways where --model is such a folder.
OUTPUT    JSONL that prefjax reads. Without a scorer a row a response (`prompt`, `completion`); with one a row a prompt
          (`prompt`, `completions`, `scores`; `best` with --best_of), which `experiments.curate` makes pairs of.
          Beside: `logp` (nats, summed over tokens, under the model itself), `length` in tokens, `finished` (false:
          cut off by --max_new_tokens). OUTPUT.manifest.json holds what it was made of.
STOPPING  What is done is kept in OUTPUT.partial: the same command continues, and writes the same file, byte for byte.
SCORERS   logp, mean_logp: of the model that samples. implicit:WORKDIR: the implicit reward of a run, beta (log pi -
          log ref). reward:WORKDIR: a trained reward model. module:function: yours, called with (prompt, completions),
          gives a score for each.
"""

import dataclasses
from pathlib import Path

from absl import app, flags
from tqdm import tqdm

from experiments.command import command_line, start_command
from prefjax.data.account import Account
from prefjax.data.encoding import EncodingPolicy
from prefjax.data.prompts import Prompt, encode_prompts, read_prompts
from prefjax.interrupts import StopRequest
from prefjax.models import SamplingOptions, hub
from prefjax.models.huggingface import is_checkpoint
from prefjax.policies.generate import GenerationConfig, facts_of, generate_file, machine_of, respond, rows_of
from prefjax.policies.open import open_mesh, open_policy
from prefjax.policies.scorers import SCORERS, Scorer, load_scorer
from prefjax.training.parameters import Policy

_MODEL = flags.DEFINE_string(
    "model", None, "A run's --workdir (or its sft folder), a Hugging Face folder or hf:owner/name."
)
_PROMPT = flags.DEFINE_string("prompt", "", "One prompt, answered on the terminal.")
_PROMPTS = flags.DEFINE_string("prompts", "", "Files of prompts, preference data, or named datasets.")
_OUTPUT = flags.DEFINE_string("output", "", "The .jsonl or .jsonl.gz file to write.")
_SAMPLES = flags.DEFINE_integer("samples_per_prompt", None, "Responses to each prompt; 1 if nothing is given.")
_BEST_OF = flags.DEFINE_integer("best_of", None, "As many responses to each prompt, the one that scores best marked.")
_SCORER = flags.DEFINE_string("scorer", "", f"{SCORERS}.")
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Logits are divided by it; 0 takes the most likely token.")
_TOP_K = flags.DEFINE_integer("top_k", 0, "Keep the k most likely tokens; 0 keeps all.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Keep the most likely tokens until they add up to it; 1 keeps all.")
_MAX_NEW = flags.DEFINE_integer("max_new_tokens", 256, "A response that has not ended by then is cut off.")
_MAX_PROMPT = flags.DEFINE_integer("max_prompt_length", None, "Longer prompts (in tokens) are dropped.", lower_bound=1)
_STOP_IDS = flags.DEFINE_list("stop_ids", [], "Token ids that end a response besides the model's own.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the random numbers; each prompt and sample has its own.")
_BATCH = flags.DEFINE_integer("batch", 64, "Sequences sampled at once.")
_CHAT = flags.DEFINE_bool("chat", None, "Whether a prompt of text is a user's turn.")
_CHAT_TEMPLATE = flags.DEFINE_string("chat_template", None, "In place of the model's own: plain, or a Jinja template.")
_KWARGS = flags.DEFINE_string(
    "chat_template_kwargs", "", "What else the template is given, a JSON object; empty: what the run gave it."
)
_DATE = flags.DEFINE_string(
    "date", "", "The day that a template which reads the clock is told, as 2026-11-29. Empty: data.date, or today."
)
_PREFILL = flags.DEFINE_bool(
    "prefill", None, "Whether responses go on in a turn of the assistant's that a prompt ends in. None: as in the run."
)
_DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Of the computation. None: the model's own.")
_MESH = flags.DEFINE_string("mesh", "", "Of devices, as data=2,fsdp=4,tensor=1; empty: fsdp over all of them.")
_TFDS_DIR = flags.DEFINE_string("tfds_dir", "", "Where named datasets are kept; empty: ~/tensorflow_datasets.")
_MANUAL_DIR = flags.DEFINE_string("manual_dir", "", "Files of named datasets, fetched by hand.")


@StopRequest()
def main(_) -> None:
    config = _config()
    mesh = open_mesh(_MESH.value)
    told = dict(chat_template=_CHAT_TEMPLATE.value, chat_template_kwargs=_KWARGS.value, date=_DATE.value)
    policy = open_policy(_MODEL.value, mesh, dtype=_DTYPE.value, **told)
    stops = (*policy.stop_ids, *map(int, _STOP_IDS.value))
    policy = dataclasses.replace(policy, stop_ids=tuple(dict.fromkeys(stops)))
    scorer = load_scorer(_SCORER.value, mesh) if _SCORER.value else None
    if _PROMPT.value:
        _show(policy, config, scorer)
        return
    folders = dict(data_dir=_TFDS_DIR.value, manual_dir=_MANUAL_DIR.value)
    read, file = read_prompts(_PROMPTS.value, prefill=_chat_policy(policy).prefill, **folders)
    prompts, account = _encoded(policy, read, _is_chat(policy))
    account = file.account + account
    print(f"{account}\n", flush=True)
    identity = {
        "model": _MODEL.value,
        **facts_of(policy),
        "prefill": _chat_policy(policy).prefill,
        "prompts": file.sources,
        "max_prompt_length": _MAX_PROMPT.value,
        "chat": _is_chat(policy),
        "scorer": _SCORER.value,
    }
    about = {
        "command": command_line("generate"),
        **machine_of(policy),
        "account": account.as_dict(),
    }
    manifest = generate_file(
        policy, prompts, config, Path(_OUTPUT.value), identity=identity, about=about, scorer=scorer
    )
    counts = ", ".join(f"{count} {name}" for name, count in manifest["counts"].items())
    print(f"{manifest['rows']} rows in {_OUTPUT.value} ({counts})")


def _config() -> GenerationConfig:
    """What the flags ask for. Raises UsageError where they contradict each other."""
    if bool(_PROMPT.value) == bool(_PROMPTS.value):
        raise app.UsageError("give --prompt, which is answered here, or --prompts with --output")
    if bool(_PROMPTS.value) != bool(_OUTPUT.value):
        raise app.UsageError("--prompts and --output go together")
    if _BEST_OF.value is not None and (_SAMPLES.value is not None or not _SCORER.value):
        raise app.UsageError("--best_of says how many samples there are, and needs --scorer; drop --samples_per_prompt")
    if wrong := [word for word in _STOP_IDS.value if not word.isdecimal()]:
        raise app.UsageError(f"--stop_ids={','.join(wrong)}: ids of tokens are whole numbers, as in --stop_ids=2,32000")
    sampling = SamplingOptions(_TEMPERATURE.value, _TOP_K.value, _TOP_P.value, _MAX_NEW.value)
    samples = _BEST_OF.value if _BEST_OF.value is not None else _SAMPLES.value
    samples = 1 if samples is None else samples
    if samples > 1 and not sampling.temperature:
        raise app.UsageError(
            f"--temperature=0 gives the same response {samples} times: raise it, or ask for one sample"
        )
    return GenerationConfig(sampling, samples, _BEST_OF.value is not None, _SEED.value, _BATCH.value)


def _is_chat(policy: Policy) -> bool:
    return _templated(policy) if _CHAT.value is None else _CHAT.value


def _templated(policy: Policy) -> bool:
    return policy.tokenizer.has_chat_template and is_checkpoint(hub.local(_MODEL.value))


def _chat_policy(policy: Policy) -> EncodingPolicy:
    asked = policy.data.encoding
    return asked if _PREFILL.value is None else dataclasses.replace(asked, prefill=_PREFILL.value)


def _encoded(policy: Policy, prompts: list[Prompt], chat: bool) -> tuple[list[Prompt], Account]:
    rules = _chat_policy(policy)
    return encode_prompts(prompts, policy.tokenizer, rules, chat=chat, max_length=_MAX_PROMPT.value)


def _show(policy: Policy, config: GenerationConfig, scorer: Scorer | None) -> None:
    ways = {"as it is": False, "as a user's turn": True} if _CHAT.value is None and _templated(policy) else {"": None}
    for way, chat in ways.items():
        chat = _is_chat(policy) if chat is None else chat
        prompts, account = _encoded(policy, [Prompt(_PROMPT.value, "--prompt")], chat)
        if not prompts:
            raise app.UsageError(str(account))
        responses = respond(policy, prompts, config, bar=tqdm(disable=True))
        rows, counts = rows_of(policy.tokenizer, prompts, responses, scorer)
        if way:
            print(f"[{way}]")
        for row in rows:
            if scorer is None:
                print(_marked(row["completion"], row["finished"]))
                continue
            answers = zip(row["scores"], row["completions"], row["finished"], strict=True)
            for score, text, finished in sorted(answers, reverse=True):
                print(f"{score:.4g}\t{_marked(text, finished)}")
        if counts["blank"]:
            print(f"[{counts['blank']} blank]")


def _marked(text: str, finished: bool) -> str:
    return text if finished else f"{text} [...]"


if __name__ == "__main__":
    start_command(main, required=["model"])
