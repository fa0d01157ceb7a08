"""ood_jax: train image models that know what they do not know, and score images as in or out."""

__version__ = "0.1.0"
