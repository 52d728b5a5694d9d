"""Names of the files in a checkpoint, which the learner writes and others read."""

WEIGHTS = "weights.safetensors"
"""The trained weights, those of the adapters for a LoRA."""
EMA = "ema.safetensors"
"""Their running average, with `learner.ema_decay`."""
OLD = "old.safetensors"
"""The policy that samples where that is an average, with `learner.nft.old_decay`."""
PREVIOUS = "previous.safetensors"
"""The weights of the version before, which a run with `staleness: 1` samples with."""
LEARNER = "learner.json"
"""The version of the weights (`version`), the share of the settings' learning rate that the learner takes (`pace`), and
its number of ranks (`ranks`)."""
