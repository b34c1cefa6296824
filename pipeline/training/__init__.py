"""What a training run is made of, between the command `pipeline.train` and the loop of `d2ls`."""
