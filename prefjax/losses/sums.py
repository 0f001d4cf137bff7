"""Sums of objectives as text, those that have a name, and terms that are the least or the greatest of several."""

import ast
import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from prefjax.losses.objective import Objective, Sum, keyed, terms_of
from prefjax.losses.responses import Responses

FORM = "write weight*name(option=value, ...), several with + between them, or min(...) or max(...) of such terms"


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


@dataclasses.dataclass(frozen=True)
class Extreme(Sum):
    """Of every prompt the least or the greatest of weight * loss: minimum(0.5 * objective("dpo"), objective("ipo")).

    A prompt's gradient is that of the loss that is taken, the first of equal ones. In everything else it is a sum: it
    needs what all of its terms need, `parts` are their losses, and its start value is the extreme of theirs.

    pick   which one
    bound  a number among them, nats: where it is taken there is no gradient

    Raises:
      ValueError: there are no two to choose from, or what `Sum` raises.
    """

    pick: Literal["min", "max"] = "max"
    bound: float | None = None

    def __post_init__(self):
        if len(self.terms) + (self.bound is not None) < 2 or not self.terms:
            raise ValueError(f"{self.pick} takes two or more terms, of which one may be a number")
        if self.bound is not None and not math.isfinite(self.bound):
            raise ValueError(f"{self.pick}: {self.bound!r} must be a finite number")
        super().__post_init__()

    @property
    def name(self) -> str:
        bound = () if self.bound is None else (repr(self.bound),)
        return f"{self.pick}({', '.join([*(f'{weight!r}*{term}' for weight, term in self.terms.values()), *bound])})"

    @property
    def key(self) -> str:
        return "_".join([self.pick, *self.terms])

    def loss(self, responses: Responses, **options: Any) -> Float[Array, "B"]:
        """The extreme of weight * loss, per prompt that counts for all terms."""
        return jnp.where(self.valid_prompts(responses), super().loss(responses, **options), 0)

    def at_init(self, responses: Responses, **options: Any) -> Float[Array, "B"]:
        """The same when policy == reference."""
        return jnp.where(self.valid_prompts(responses), super().at_init(responses, **options), 0)

    def _added(self, parts: Mapping[str, Float[Array, "B"]]) -> Float[Array, "B"]:
        losses = [self.terms[key].weight * part for key, part in parts.items()]
        if self.bound is not None:
            losses.append(jnp.full_like(losses[0], self.bound))
        stacked = jnp.stack(losses)
        taken = (jnp.argmin if self.pick == "min" else jnp.argmax)(stacked, axis=0)
        return jnp.take_along_axis(stacked, taken[None], axis=0)[0]


def minimum(*terms: Objective | float) -> Extreme:
    """Of every prompt the least loss of the terms, objectives with a weight or none; at most one may be a number.

    minimum(objective("dpo"), 2.0) bounds what a pair, which may be labelled wrongly, can cost.

    Raises:
      ValueError: see `Extreme`; a term is a sum of several.
    """
    return _extreme("min", terms)


def maximum(*terms: Objective | float) -> Extreme:
    """Of every prompt the greatest loss of the terms, see `minimum`: maximum(objective("dpo"), objective("simpo"))
    learns from the one that is worse off, maximum(objective("dpo"), 0.1) leaves alone what has come so far."""
    return _extreme("max", terms)


_EXTREMES = {"min": minimum, "max": maximum}


def _extreme(pick: Literal["min", "max"], terms: tuple[Objective | float, ...]) -> Extreme:
    numbers = [term for term in terms if isinstance(term, int | float)]
    each = [terms_of(term) for term in terms if isinstance(term, Objective)]
    if several := [one for one in each if len(one) > 1]:
        raise ValueError(
            f"{pick} takes terms with a weight, and {Sum(terms=keyed(several[0])).name} is a sum of several"
        )
    if len(numbers) > 1 or len(numbers) + len(each) < len(terms):
        raise ValueError(f"{pick} takes two or more terms, of which one may be a number")
    bound = float(numbers[0]) if numbers else None
    return Extreme(terms=keyed([one[0] for one in each]), pick=pick, bound=bound)


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
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _EXTREMES:
            if node.keywords:
                raise ValueError(f"objective {text!r}: {node.func.id} takes no option {node.keywords[0].arg!r}; {FORM}")
            values = [number(argument) for argument in node.args]
            pairs = zip(node.args, values, strict=True)
            return _EXTREMES[node.func.id](*(one(arg) if value is None else value for arg, value in pairs))
        if isinstance(node, ast.Name | ast.Call):
            return find(node)
        raise ValueError(f"objective {text!r}: {ast.unparse(node)!r} is no term; {FORM}")

    return one(tree)
