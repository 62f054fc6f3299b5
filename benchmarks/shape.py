"""The model of the step benchmarks: large enough that a step is arithmetic, small enough for a
minute on two cores.
"""

SHAPE = {
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "head_dim": 64,
}
