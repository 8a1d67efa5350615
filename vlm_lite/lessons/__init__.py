"""What the notebooks build, generated from their cells tagged `save` by `make notebooks`: edit the notebooks."""
