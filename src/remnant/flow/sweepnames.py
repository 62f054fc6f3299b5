"""What the runs of a sweep are called, and what stands in it under a name that is taken. No
torch.
"""

from collections.abc import Sequence
from typing import TypeVar

from remnant.records import RunSpec, SweepSpec, Variant

K = TypeVar("K")


def run_name(run: RunSpec) -> str:
    """The name of an unlearning run in tables: its own, or method and weights where these are not
    float32.
    """
    method = run.method or "+".join(t.use.rsplit(":", 1)[-1] for t in run.terms)
    return run.name or (method if run.weights == "fp32" else f"{method} {run.weights}")


def named_twice(sweep: SweepSpec) -> list[str]:
    """What stands in a sweep under a name that is taken."""
    faults: list[str] = []
    names = [run_name(r) for r in sweep.unlearn]
    corpora = [c.name or c.lab or "corpus" for c in sweep.corpus]
    faults += [
        f"Two corpora are named '{n}'; give one a name of its own." for n in _repeated(corpora)
    ]
    faults += [
        f"An unlearning run is named '{n}', as another model of every sweep is."
        for n in names
        if Variant(model=n).is_reference
    ]
    faults += [f"The seed {n} stands there twice." for n in _repeated(sweep.seeds)]
    faults += [
        f"Two unlearning runs are named '{n}'; give one a name of its own."
        for n in _repeated(names)
    ]
    return faults


def _repeated(names: Sequence[K]) -> list[K]:
    """Those that stand there more than once, each once, in order."""
    return [name for name in dict.fromkeys(names) if names.count(name) > 1]
