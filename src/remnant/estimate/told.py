"""What an estimate says: a row for each piece, and the cheapest setting that fits. No torch until
the rates of the machine are measured.
"""

import importlib
from collections.abc import Sequence

from remnant.estimate.devices import Device, devices
from remnant.estimate.fitting import cheapest
from remnant.estimate.needs import Needs, needs_of
from remnant.flow.copies import Copy, wanted
from remnant.flow.node import Node
from remnant.flow.progress import clock, describe
from remnant.flow.store import Store
from remnant.flow.together import ALONE, Spread
from remnant.report import terminal

HEADER = (
    "piece", "weights", "gradients", "moments", "activations", "passing", "cache", "peak memory",
    "disk", "read", "time",
)  # fmt: skip


def tell(store: Store, nodes: Sequence[Node], spread: Spread = ALONE) -> None:
    """Print what some pieces need on this machine, of each device that a model is spread over;
    nothing is run.
    """
    speed = importlib.import_module("remnant.estimate.rates").rates()
    copies = wanted(nodes)
    found = [(node, needs_of(store, node, speed, spread)) for node in nodes]
    known = [
        # A copy that is only measured is not written.
        (describe(n), needs._replace(disk=0) if copies.get(n.name) == Copy.KNOWN else needs)
        for n, needs in found
        if needs
    ]
    print(terminal.columns([HEADER, *(row(*pair) for pair in known)]))
    for device in devices():
        print(f"{device.name}: {gigabytes(device.free)} free.")
        for name, needs in known:
            print(f"{name}: {advice(needs, device, spread)}")
    if spread.devices > 1:
        print(
            f"So much on each of {spread.devices} devices; saving needs no more, since each writes "
            "the rows that it holds. What they take together is not foretold."
        )
    print(
        f"This machine multiplies at {speed.matmul / 1e9:.0f} GFLOP/s (bfloat16 "
        f"{speed.half / 1e9:.0f}) and copies at {gigabytes(speed.copy)}/s. Nothing was run."
    )
    if len(known) < len(nodes):
        print(f"{len(nodes) - len(known)} pieces work without a model.")


def row(name: str, needs: Needs) -> tuple[str, ...]:
    """One piece."""
    parts = needs.peak._asdict()
    wanted = ("weights", "gradients", "moments", "activations", "passing", "cache")
    memory = [gigabytes(parts[part]) for part in wanted]
    seconds = "-" if needs.seconds is None else clock(needs.seconds)
    return (
        name,
        *memory,
        gigabytes(needs.peak.total),
        gigabytes(needs.disk),
        gigabytes(needs.read),
        seconds,
    )


def advice(needs: Needs, device: Device, spread: Spread = ALONE) -> str:
    """The cheapest setting of a piece that fits a device, and why it is taken."""
    if needs.spec is None or needs.text is None:
        return "fits." if needs.peak.total <= device.free else "does not fit."
    choice = cheapest(needs.shape, needs.spec, needs.text, device.free, spread)
    if choice is None:
        return f"does not fit in any setting; it needs {gigabytes(needs.peak.total)}."
    if not choice.settings:
        return "fits as asked."
    changed = " ".join(f"--set {setting}" for setting in choice.settings)
    return (
        f"does not fit as asked ({gigabytes(needs.peak.total)}); the cheapest that does is "
        f"{changed} ({gigabytes(choice.peak.total)}): {choice.why}."
    )


def gigabytes(count: float) -> str:
    """Bytes in large.

    >>> gigabytes(1_540_000_000)
    '1.54 GB'
    """
    return f"{count / 1e9:.2f} GB"
