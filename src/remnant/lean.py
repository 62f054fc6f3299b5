"""A process of Remnant's own imports of other libraries what it uses, and no more.

transformers imports hqq (with it torch's compiler), scikit-learn (pandas, scipy) and torchao as
soon as they are installed, for functions that a process of Remnant hardly ever calls: half of the
seconds before anything happens. Here these functions are looked up when they are called.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_OF_BOXES = (
    "deformable_detr", "for_object_detection", "grounding_dino", "lw_detr", "rf_detr", "rt_detr",
)  # fmt: skip
# What files of transformers take from libraries when they are imported: library, names. Where a
# version of it takes something else, everything is imported as it would have been.
LATER = {
    "transformers.cache_utils": ("hqq.core.quantize", ("Quantizer",)),
    "transformers.quantizers.quantizer_hqq": ("hqq.core.quantize", ("HQQLinear",)),
    "transformers.generation.candidate_generator": ("sklearn.metrics", ("roc_curve",)),
    "transformers.quantizers.quantizer_torchao": (
        "torchao.prototype.safetensors.safetensors_support", ("flatten_tensor_state_dict",),
    ),
} | dict.fromkeys(
    (f"transformers.loss.loss_{name}" for name in _OF_BOXES),
    ("scipy.optimize", ("linear_sum_assignment",)),
)  # fmt: skip


class Later:
    """A function or class of a library that is imported when this is used.

    Attributes that are set before are those of the real one from then on.
    """

    def __init__(self, module: str, name: str) -> None:
        vars(self).update(_home=(module, name), _given={})

    def __setattr__(self, name: str, value: object) -> None:
        self._given[name] = value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real(), name)

    def __call__(self, *args: Any, **settings: Any) -> Any:
        """What the real one gives."""
        return self._real()(*args, **settings)

    def _real(self) -> Any:
        module, name = self._home
        real = getattr(import_module(module), name)
        while self._given:
            setattr(real, *self._given.popitem())
        return real


class _Leanly(Loader):
    """Runs a module of ``LATER`` as its own loader does, beside stand-ins for what it imports."""

    def __init__(self, own: Loader) -> None:
        self.own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__loader__"] = self.own
        try:
            with _standing_in(*LATER[module.__name__]):
                self.own.exec_module(module)
        except ImportError:
            self.own.exec_module(module)


class _Finder(MetaPathFinder):
    """Finds the modules of ``LATER`` alone."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name in LATER else None
        if spec and spec.loader:
            spec.loader = _Leanly(spec.loader)
        return spec


@contextmanager
def _standing_in(module: str, names: tuple[str, ...]) -> Iterator[None]:
    """A module that holds these names only, in the place of one that nobody has imported yet."""
    if module in sys.modules:
        yield
        return
    stand_in = ModuleType(module)
    vars(stand_in).update({name: Later(module, name) for name in names})
    sys.modules[module] = stand_in
    try:
        yield
    finally:
        sys.modules.pop(module, None)


def import_leanly() -> None:
    """From now on transformers is imported without what it does not need, in this process.

    For processes of Remnant's own: commands, workers, tests. Called again it does nothing; modules
    that were imported before stay as they are.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
