"""Every call within `remnant.functional` is checked against the shapes that it names."""

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

# A whole number is a float here, as for mypy.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
install_import_hook("remnant.functional", "tests.checked")
