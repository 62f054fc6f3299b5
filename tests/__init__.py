"""Every call to a function of `remnant.functional` that names the shapes of its tensors is checked
against them. Modules without tensors are left alone: on words a check costs more than the work.

And before anything is imported: a test process imports as lean as Remnant's own do.
"""

from pathlib import Path

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

from remnant.lean import import_leanly

import_leanly()
FUNCTIONAL = Path(__file__).parent.parent / "src" / "remnant" / "functional"
NAMED = [
    f"remnant.functional.{path.stem}"
    for path in FUNCTIONAL.glob("*.py")
    if "from remnant.functional.shapes import" in path.read_text(encoding="utf-8")
]

# A whole number is a float here, as for mypy.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
install_import_hook(NAMED, "tests.checked")
