"""Whether an audit keeps what was promised of a model, for a pipeline."""
