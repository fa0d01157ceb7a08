"""The parts of `python -m ood_jax.report`: workdirs -> variants -> blocks -> HTML and Markdown."""
