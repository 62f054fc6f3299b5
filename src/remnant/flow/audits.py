"""An audit as a piece of work: what is judged, and the tests on weights that it rests on, all of
them or look by look until the verdicts are decided. No torch.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path

from remnant.attacks import ATTACKS, LOOKS, is_transform, role_of
from remnant.flow.node import Input, Node
from remnant.flow.sources import check_plain
from remnant.methods import own_roles, step
from remnant.records import NOT_RUN, AttackSpec, AuditSpec, MetricSpec, Rule


def audit_node(
    rule: Rule,
    measured: Mapping[str, Node],
    extra: Iterable[MetricSpec] = (),
    upto: int = len(LOOKS),
) -> Node:
    """The audit on the measured models of one corpus and seed, with the tests on their weights
    where its rule sees these.

    ``extra``: the user's metrics, which may count in it. ``upto``: under a rule that stops, how
    many looks at the weights are made.

    Raises:
        UserError: weights are to be seen and are packed.
    """
    members = {role: node.label for role, node in measured.items()}
    spec = AuditSpec(rule=rule, members=members, roles=own_roles(extra))
    if rule.access != "weights":
        return Node("audit", spec, measured)
    if not rule.stop or not _is_held_against(measured):
        return Node("audit", spec, {**measured, **attack_nodes(measured)})
    made = [attack_nodes(measured, tests) for tests in LOOKS[:upto]]
    left = tuple(chain.from_iterable(LOOKS[upto:]))
    attacked = {
        f"{role}, look {i}": node for i, nodes in enumerate(made, 1) for role, node in nodes.items()
    }
    spec = spec.model_copy(update={"not_run": left})
    return Node("audit", spec, {**measured, **attacked})


def looks(rule: Rule, measured: Mapping[str, Node]) -> Iterator[Node]:
    """The audits to be made one after the other until one of them is settled: one, or under a rule
    that stops one for each look, the last with all tests.
    """
    several = rule.stop and rule.access == "weights" and _is_held_against(measured)
    for upto in range(0 if several else len(LOOKS), len(LOOKS) + 1):
        yield audit_node(rule, measured, upto=upto)


def is_settled(node: Node, folder: Path) -> bool:
    """Whether what an audit left out could change none of its verdicts: it says so of each."""
    assert isinstance(node.spec, AuditSpec)
    left = node.spec.not_run or ()
    told = json.loads((folder / "evidence.json").read_text(encoding="utf-8"))
    return all(row["says"] == NOT_RUN for row in told if row["test"] in left)


def _is_held_against(measured: Mapping[str, Node]) -> bool:
    """Whether target and never-read model were measured in full precision."""
    return {"target", "retrain"} <= {n.label.model for n in measured.values() if n.label.in_full}


def attack_nodes(
    measured: Mapping[str, Node], tests: tuple[str, ...] = tuple(ATTACKS)
) -> dict[str, Node]:
    """Tests on the weights of some measured models in full precision, by their roles in an audit;
    none where no model is there that never read the text.

    Raises:
        UserError: weights are packed.
    """
    if not _is_held_against(measured):
        return {}
    whole = {n.label.model: n for n in measured.values() if n.label.in_full}
    uses = chain.from_iterable(ATTACKS[name].behind for name in tests)
    methods = {use: step(use).method.identity for use in uses if is_transform(use)}
    methods |= {name: str(ATTACKS[name].version) for name in tests}

    def attacked(node: Node, beside: Mapping[str, Input]) -> Node:
        check_plain(node.inputs["model"], "packed weights cannot be changed and asked again")
        inputs = {role: node.inputs[role] for role in ("model", "corpus")}
        inputs["target"] = whole["target"].inputs["model"]
        spec = AttackSpec(tests=tests)
        return Node("attack", spec, inputs | dict(beside), methods, node.label)

    control = attacked(whole["retrain"], {})
    others = {m: attacked(n, {"control": control}) for m, n in whole.items() if m != "retrain"}
    return {role_of(model): node for model, node in (others | {"retrain": control}).items()}
