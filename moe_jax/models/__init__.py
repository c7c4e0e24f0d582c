"""Pretrained encoders and language models in Flax NNX."""
