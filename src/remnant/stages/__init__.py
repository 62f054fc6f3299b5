"""One file per verb, each with ``run(spec, inputs, out, report) -> summary``.

Its version stands in the catalogue.
"""
