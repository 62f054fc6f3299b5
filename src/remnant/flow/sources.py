"""A model that a user names as an input of a piece of work: adapters merged, packed weights decoded
where that is wanted, and refused where numbers are. No torch.
"""

from pathlib import Path

from remnant.adapterfiles import adapter_in, is_adapter
from remnant.errors import UserError, some
from remnant.flow.node import UNNAMED, Input, Node
from remnant.flow.place import MODEL_STAGES, Made, Outside, given, outside
from remnant.flow.store import Store
from remnant.flow.unread import unread
from remnant.packing import check_decoded, refusal
from remnant.records import DequantizeSpec, MergeSpec, Variant


def model(store: Store, reference: str, *, dequantize: bool = False) -> Input:
    """A model that a user names: a folder, a GGUF file, a hub id, an artefact of the store, or an
    adapter, which is merged into its model. Where ``dequantize``, packed weights are decoded first.

    Raises:
        UserError: nothing fits, or it is something else.
    """
    if found := adapter_in(reference):
        base = given(store, found.base, MODEL_STAGES)
        return merge_node(_dense(base, dequantize), _adapter(found.folder, store))
    made = given(store, reference, MODEL_STAGES)
    if isinstance(made, Made) and is_adapter(store.path(made.name)):
        return model(store, str(store.path(made.name)), dequantize=dequantize)
    return _dense(made, dequantize)


def _dense(source: Made | Outside, dequantize: bool) -> Input:
    """A model, or its decoded copy where that is wanted and it is packed.

    What a model of the hub is shows only when it is there.
    """
    if not dequantize or isinstance(source, Node):
        return source
    if source.packing:
        check_decoded(source.packing, _shown(source))
        return Node("dequantize", DequantizeSpec(), {"model": source})
    remote = isinstance(source, Outside) and not Path(source.source).exists()
    return Node("dequantize", DequantizeSpec(), {"model": source}) if remote else source


def check_plain(source: Input, fault: str) -> None:
    """Refuse a source whose weights are packed; ``fault``: what would happen.

    Raises:
        UserError: by the name of the packing.
    """
    if not isinstance(source, Node) and source.packing:
        raise refusal(source.packing, _shown(source), fault)


def check_alone(source: object) -> None:
    """Refuse the folder of a model from outside with other weights in it than those that are
    opened. Folders below it are not looked at, in which trainers keep earlier states.

    Raises:
        UserError: by their names.
    """
    folder = Path(source.source) if isinstance(source, Outside) else None
    if folder is None or not folder.is_dir():
        return
    if other := unread(folder, sorted(p.name for p in folder.iterdir() if p.is_file())):
        raise UserError(
            f"{folder} holds weights that an audit of it does not open, and another runtime may: "
            f"{some(other)}.",
            "Audit them apart, or take them out of the folder.",
        )


def _shown(source: Made | Outside) -> str:
    return source.source if isinstance(source, Outside) else source.name


def _adapter(folder: Path, store: Store) -> Made | Outside:
    owner = store.owner(folder)
    if owner and store.path(owner).resolve() == folder.resolve():
        return Made(owner, store.manifest(owner).digest)
    return Outside(str(folder))


def outside_model(reference: str, *, dequantize: bool = False) -> Input:
    """A model from outside of any store: a folder, a GGUF file, a hub id, or an adapter.

    Raises:
        UserError: there is no such thing.
    """
    if found := adapter_in(reference):
        return merge_node(_dense(outside(found.base), dequantize), Outside(str(found.folder)))
    return _dense(outside(reference), dequantize)


def merge_node(base: Input, adapter: Input, label: Variant = UNNAMED) -> Node:
    """A model with an adapter merged into it; both enter by their digests.

    Raises:
        UserError: the model's weights are packed.
    """
    check_plain(base, "no adapter can be added to packed weights")
    return Node("merge", MergeSpec(), {"base": base, "adapter": adapter}, label=label)
