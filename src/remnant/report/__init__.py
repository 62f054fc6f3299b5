"""From finished artefacts to tables, charts and one page. No torch, no models."""
