"""Adapters merged into the weights by peft: lora."""

from typing import Annotated

from pydantic import AfterValidator

from remnant.formats.base import Format
from remnant.records.base import Record


def _named(adapter: str) -> str:
    if not adapter:
        raise ValueError("name the folder of the adapter with --set params.adapter=FOLDER.")
    return adapter


class Merging(Record):
    """The folder of the adapter."""

    adapter: Annotated[str, AfterValidator(_named)]


LORA = Format(
    key="lora",
    path="remnant.deploy.lora:merge",
    version=1,
    meaning="a LoRA adapter merged into the weights, by peft",
    source="arXiv 2106.09685, eq. 3",
    params=Merging,
    read=lambda name: None,
    write=lambda params: None,
    extra="lora",
)
