"""A preview of prepared trees as a page for a browser: what is scored, in colour, and what became of every record."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from prefjax.data.account import REASONS
from prefjax.data.preview import VISIBLE, Block, Span

_STYLE = """
:root { --text: #1b1f24; --page: #ffffff; --soft: #59636e; --line: #d1d9e0; --box: #f6f8fa;
  --scored: #0b5d1e; --scored-back: #d7f2dd; --special: #8a2c0d; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --page: #0d1117; --soft: #9198a1; --line: #3d444d;
  --box: #151b23; --scored: #a6f0b5; --scored-back: #12361c; --special: #ffb38a; } }
:root { color-scheme: light dark; }
body { color: var(--text); background: var(--page); font: 16px/1.5 system-ui, sans-serif; max-width: 64rem;
  margin: 2rem auto; padding: 0 1rem; }
h2 { font-size: 1.1rem; border-top: 1px solid var(--line); padding-top: 1rem; }
h3, td, th, .soft { font-size: 0.875rem; font-weight: normal; }
h3, .soft { color: var(--soft); margin-bottom: 0.25rem; }
pre { background: var(--box); border: 1px solid var(--line); border-radius: 6px; padding: 0.75rem; margin: 0;
  white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
.scored { color: var(--scored); background: var(--scored-back); }
.special { color: var(--special); text-decoration: underline; }
table { border-collapse: collapse; width: 100%; } caption { text-align: left; padding: 0.5rem 0; }
td, th { border-bottom: 1px solid var(--line); padding: 0.25rem 0.5rem; text-align: left; vertical-align: top; }
.number { text-align: right; font-variant-numeric: tabular-nums; } code { overflow-wrap: anywhere; }
"""


def preview_page(title: str, trees: Iterable[Sequence[Block]], manifest: Mapping[str, Any]) -> str:
    """HTML by itself, without scripts or anything from elsewhere. All text is escaped: data cannot become markup.

    Args:
        trees: of each what `preview.tree_blocks` says.
        manifest: of the prepared trees: its `account`, `source` and `lengths_text` are shown.
    """
    said = "".join(f"<section>{_tree(blocks)}</section>\n" for blocks in trees)
    counts = "".join(_stage(name, stage) for name, stage in manifest["account"].items())
    legend = f"{_span(Span('scored', True, False))}, read only, {_span(Span('special token', False, True))}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{_text(title)}</h1>\n"
        f'<p>{_text(manifest["source"])}</p>\n<p class="soft">{legend}</p>\n{said}'
        f"<h2>What became of every record</h2>\n{counts}"
        f"<h2>Lengths</h2>\n<pre>{_text(manifest['lengths_text'])}</pre>\n</body>\n</html>\n"
    )


def _text(text: str) -> str:
    """Text that means nothing to a browser, with pictures of control characters."""
    return escape(text.translate(VISIBLE))


def _tree(blocks: Sequence[Block]) -> str:
    (facts, _), *texts = blocks
    return f"<h2>{_text(facts)}</h2>\n" + "".join(
        # A browser leaves out a line break right after <pre>, which may be the text's own.
        f"<h3>{_text(about)}</h3>\n<pre>\n{''.join(map(_span, text))}</pre>\n"
        for about, text in texts
    )


def _span(span: Span) -> str:
    kinds = " ".join(name for name, held in (("scored", span.scored), ("special", span.special)) if held)
    return f'<span class="{kinds}">{_text(span.text)}</span>' if kinds else _text(span.text)


def _stage(name: str, stage: Mapping[str, Any]) -> str:
    """A table of one stage's counts: those that dropped records first."""
    read, kept, made, found = (stage[key] for key in ("read", "kept", "outputs", "found"))
    more = f", made {made}" if made != kept else ""
    caption = f"<caption>{_text(name)}: {read} in, kept {kept}, dropped {read - kept}{more}</caption>"
    if not found:
        return f"<table>{caption}</table>\n"
    order = sorted(found, key=lambda reason: (-stage["dropped"].get(reason, 0), -found[reason], reason))
    rows = "".join(_reason(reason, stage) for reason in order)
    head = '<tr><th>reason</th><th class="number">found</th><th class="number">dropped</th><th>what and where</th></tr>'
    return f"<table>{caption}\n{head}\n{rows}</table>\n"


def _reason(reason: str, stage: Mapping[str, Any]) -> str:
    places = "".join(f"<br><code>{_text(place)}</code>" for place in stage["examples"].get(reason, []))
    counts = "".join(
        f'<td class="number">{count}</td>' for count in (stage["found"][reason], stage["dropped"].get(reason, 0))
    )
    return f"<tr><td>{_text(reason)}</td>{counts}<td>{_text(REASONS[reason])}{places}</td></tr>\n"
