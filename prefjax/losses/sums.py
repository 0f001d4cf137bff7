"""Sums of objectives as text, and those that have a name."""

import ast
import dataclasses
import re
from collections.abc import Callable

from prefjax.losses.objective import Objective

FORM = "write weight*name(option=value, ...), several with + between them"


@dataclasses.dataclass(frozen=True)
class Composition:
    """A sum that has a name.

    text    as `objective` reads it
    source  what it is and where it is from, for docs/objectives.md
    """

    text: str
    source: str


# Names are not those of objectives: `rpo_nll`, `cpo` and `slic` are sums whose weights are options of theirs.
COMPOSITIONS = {
    "mpo": Composition(
        "0.8*dpo + 0.2*bco_pair + 1.0*sft",
        "Mixed preference optimisation (MPO), arXiv 2411.10442: preference, quality and generation loss; its quality "
        "loss has a running shift, which `bco_pair` has at 0, as TRL's `loss_type` list has",
    ),
    "cpo_simpo": Composition(
        "1.0*simpo + 1.0*sft",
        "CPO-SimPO: SimPO with the likelihood of the chosen response per token, as TRL's CPO trainer has with "
        "`simpo` and `cpo_alpha` = 1",
    ),
    "llama3_dpo": Composition(
        "1.0*dpo + 0.2*sft",
        "DPO as of Llama 3, arXiv 2407.21783, section 4.1.4: the likelihood of the chosen response per token, weight "
        "0.2; `rpo_nll` with alpha = 0.2",
    ),
}


def is_sum(text: str) -> bool:
    """Whether a text is more than one name."""
    return not re.fullmatch(r"\s*[\w.]+(:\w+)?\s*", text)


def read(text: str, find: Callable[[ast.expr], Objective]) -> Objective:
    """ "0.8*dpo(beta=2.0) + 0.2*bco_pair + sft": the sum, or the one objective where there is no weight.

    Args:
      find: a name, or a call of one with options, -> the objective.

    Raises:
      ValueError: not of this form, or what `find` and `Sum` raise.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"objective {text!r}: {error.msg}; {FORM}") from None

    def number(node: ast.expr) -> float | int | None:
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            inner = number(node.operand)
            return None if inner is None else -inner
        return node.value if isinstance(node, ast.Constant) and isinstance(node.value, int | float) else None

    def one(node: ast.expr) -> Objective:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return one(node.left) + one(node.right)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            for weight, other in ((node.left, node.right), (node.right, node.left)):
                if (value := number(weight)) is not None:
                    return value * one(other)
        if isinstance(node, ast.Name | ast.Call):
            return find(node)
        raise ValueError(f"objective {text!r}: {ast.unparse(node)!r} is no term; {FORM}")

    return one(tree)
