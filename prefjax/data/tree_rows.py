"""A row that holds a tree -> rows of the other shapes, one for every point of it where alternatives are judged.

Alternatives are judged by `rank` (0 is best), `score` or `reward` (higher is better), or `label`; where nothing judges
them, what a dialogue or a solution goes on with is preferred. What lies on the way to a point is its prompt, and only
the alternatives are scored. docs/trees.md shows what becomes of each.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prefjax.data.account import Finding, Notice, Refused, Rejection
from prefjax.data.records import Record
from prefjax.data.spellings import Respelled
from prefjax.data.tree_shapes import JUDGEMENTS, Node, Point, Shape, TreeRules, shape_of

TREE_WEIGHTS = ("each", "divided")
GOING_ON = ("begun", "ends", "root")  # columns of a row whose texts are parts of a tree
_GIVEN = ("weight", "tools", "chat_template_kwargs")


def read_tree(
    row: Mapping[str, Any], source: str, rules: TreeRules, read: Callable[[Any, str], Iterator[Record | Finding]]
) -> Iterator[Record | Finding]:
    """The records of a row that holds a tree, in the order of its points from the top, and everything found in it.

    What makes nothing of a point is counted only, as long as other points become records.

    Args:
        source: "file:line"; that of a record is "file:line:place".
        read: reads a row of another shape, given its source.
    """
    records: list[Record] = []
    found: list[Finding] = []
    try:
        columns = Respelled({name: value for name, value in row.items() if value is not None})
        columns.texts(("prompt",))
        columns.numbers(("weight",))
        shape = shape_of(columns)
        for point in _points(*shape.top(columns), found, source):
            where = f"{source}:{point.place}"
            for node in point.nodes:
                if unread := shape.unread(node, rules):
                    found.append(Notice("ignored_key", source, node.place, ", ".join(unread)))
            try:
                if not (nodes := _alternatives(point, source, shape, rules, found)):
                    continue
                made = _judged(nodes, shape, rules) | shape.before(columns, point, nodes, rules)
                made |= {name: columns[name] for name in (*_GIVEN, *rules.record) if name in columns}
                if own := [_number(node, "weight") for node in nodes if node.taken and "weight" in node.value]:
                    made["weight"] = own[0] * _number(Node("", {"weight": columns.get("weight", 1.0)}), "weight")
            except Refused as refused:
                found.append(refused.at(source))
                continue
            for item in read(made, where):
                (records if isinstance(item, Record) else found).append(item)
    except Refused as refused:
        yield refused.at(source)
        return
    except RecursionError:
        yield Rejection("too_deep", source)
        return
    found += [Notice(reason, source, *where) for reason, where in columns.found.items()]
    if unread := sorted(map(str, columns.keys() - {*shape.reads, *_GIVEN, *rules.record})):
        found.append(Notice("unread_column", source, "", ", ".join(unread)))
    if records:
        yield from (Notice(one.reason, one.source, one.field, one.detail) for one in found)
        share = len(records) if rules.divide else 1
        yield from (dataclasses.replace(record, weight=record.weight / share) for record in records)
        return
    yield from found
    if not any(isinstance(one, Rejection) for one in found):
        yield Rejection("no_branching", source)


def going_on(columns: Mapping[str, Any], prompt: Any, count: int) -> dict[str, Any]:
    """What a row says of the turn and the tree that its texts are parts of, as fields of the record. Raises Refused.

    Args:
        count: number of responses.
    """
    begun, ends, root = (columns.get(name) for name in GOING_ON)
    ends = ends if isinstance(ends, list | tuple) else [True if ends is None else ends] * count
    if len(ends) != count:
        raise Refused("length_mismatch", "ends", f"{count} responses, {len(ends)} values")
    for name, value in (("begun", begun or False), *(("ends", one) for one in ends)):
        if value not in (True, False):
            raise Refused("wrong_type", name, f"must be true or false, got {value!r:.40}")
    begun = bool(begun) and not isinstance(prompt, str)  # plain text always goes on
    if begun and (not prompt or prompt[-1].role != "assistant"):
        raise Refused("bad_role", "prompt", "its last turn is not the assistant's, but the row says that it is begun")
    return {"begun": begun, "ends": None if all(ends) else tuple(map(bool, ends)), "root": root}


def _points(place: str, top: tuple[Node, ...], found: list[Finding], source: str) -> Iterator[Point]:
    """Every point, parents first. What was withdrawn is counted and left out, and so is all below it."""
    waiting = [Point(place, (), top)]
    while waiting:
        point = waiting.pop()
        gone = [node for node in point.nodes if node.value.get("deleted") or node.value.get("review_result") is False]
        found += [Notice("withdrawn_message", source, node.place) for node in gone]
        left = tuple(node for node in point.nodes if not any(node is one for one in gone))
        point = dataclasses.replace(point, nodes=left)
        yield point
        for node in reversed(point.nodes):
            if node.after:
                where = node.after[0].place
                where = where if node.after[0].taken else where[: where.rindex("[")]
                waiting.append(Point(where, (*point.before, node), node.after))


# A point with judged alternatives, as columns of another shape.


def _alternatives(point: Point, source: str, shape: Shape, rules: TreeRules, found: list[Finding]) -> list[Node]:
    """What of a point is judged against each other; none where nothing judges it, which is counted."""

    def notice(reason: str, node: Node, detail: str = "") -> None:
        found.append(Notice(reason, source, node.place, detail))

    nodes: list[Node] = []
    for node in point.nodes:
        if shape.speaks(node, rules):
            nodes.append(node)
        elif node.judgements:
            notice("judged_question", node, ", ".join(node.judgements))
    by = _judgement(nodes)
    for node in nodes if by else ():
        if by not in node.judgements:
            notice("unjudged_reply", node)
        elif other := [key for key in node.judgements if key != by]:
            notice("unread_judgement", node, f"{', '.join(other)} beside {by}")
    nodes = [node for node in nodes if by is None or by in node.judgements]
    if nodes and ((len(nodes) == 1 and by in (None, "rank")) or (by is None and not nodes[0].taken)):
        for node in nodes:
            notice("lone_reply", node)
        return []
    return nodes


def _judgement(nodes: Sequence[Node]) -> str | None:
    return next((key for key in JUDGEMENTS if any(key in node.value for node in nodes)), None)


def _judged(nodes: Sequence[Node], shape: Shape, rules: TreeRules) -> dict[str, Any]:
    """Alternatives and what judges them, as columns."""
    said = [shape.said(node, rules) for node in nodes]
    own = {name: [node.value.get(name) for node in nodes] for name in rules.response}
    return _answers(nodes, said, rules) | {name: values for name, values in own.items() if values.count(None) == 0}


def _answers(nodes: Sequence[Node], said: Sequence[Any], rules: TreeRules) -> dict[str, Any]:
    by = _judgement(nodes)
    if by is None:
        if len(nodes) == 2:
            return {"chosen": said[0], "rejected": said[1]}
        return {"completions": list(said), "scores": [1.0] + [0.0] * (len(nodes) - 1)}
    values = [node.value[by] for node in nodes]
    if len(nodes) == 1:
        return {"completion": said[0], "label" if by == "label" else "reward": values[0]}
    if by == "rank":
        values = [0.0 - _number(node, by) for node in nodes]
    elif by == "label":
        values = [_label(node, rules) for node in nodes]
    return {"completions": list(said), "scores": values}


def _number(node: Node, key: str) -> int | float:
    value = node.value[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused("wrong_type", f"{node.place}.{key}".lstrip("."), f"must be a number, got {value!r:.40}")
    return value


def _label(node: Node, rules: TreeRules) -> float:
    spelled = Respelled({"label": node.value["label"]})
    spelled.label(rules.true, rules.false)
    if not isinstance(spelled["label"], bool | int | float) or spelled["label"] not in (0, 1):
        raise Refused("bad_label", f"{node.place}.label", f"must be true or false, got {spelled['label']!r:.40}")
    return float(spelled["label"])
