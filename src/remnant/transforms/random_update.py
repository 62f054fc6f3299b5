"""A control: the target with an update of the same norms in random directions: randomupdate."""

from remnant.records.base import Record
from remnant.transforms.base import Transform


class RandomUpdate(Record):
    """Nothing to choose but the seed of the transform."""


RANDOM_UPDATE = Transform(
    key="randomupdate",
    path="remnant.functional.mixing:random_update",
    version=1,
    meaning="a control: the target with a random update as long, in every weight, as the model's",
    source="own",
    params=RandomUpdate,
    read=lambda name: RandomUpdate() if name == "randomupdate" else None,
    write=lambda params: "randomupdate",
    names=("randomupdate",),
    everything=True,
    teaches=lambda params: True,
)
