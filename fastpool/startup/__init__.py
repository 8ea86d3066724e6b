"""The folder that `python -m fastpool run` puts on PYTHONPATH. It holds sitecustomize, no more."""
