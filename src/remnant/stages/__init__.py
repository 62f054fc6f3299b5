"""One file per verb, each with ``run(spec, inputs, out, report) -> summary``; its version stands in the catalogue."""
