"""D2LS: network, losses, metrics, loader, training loop and inference, free of any cluster or tracking software.

Importing this package is quick: PyTorch is loaded only by the modules that compute with it.
"""

__version__ = "0.1.0"
