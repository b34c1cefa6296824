"""What the network returns, the same in training, in evaluation and for every switch."""

from typing import NamedTuple

from torch import Tensor


class D2LSOutput(NamedTuple):
    """Logits, and what the losses and the plots need beside them. A tuple, hence a pytree for compile and export.

    Attributes:
        logits: B K H W, scores of the K classes at input resolution.
        static_logits: B K H W of the auxiliary branch (the static dictionary through the same decoder), or None.
        static_dictionary: K C, learned class vectors; None where the network has no dictionary.
        dynamic_dictionary: B K C, D0 of each image; None unless the dictionary is dynamic.
        dictionaries: B K C each: D0, the dictionary after every stage and the one after the closing attention
            (L + 2 tensors); empty where the network has no dictionary.
    """

    logits: Tensor
    static_logits: Tensor | None = None
    static_dictionary: Tensor | None = None
    dynamic_dictionary: Tensor | None = None
    dictionaries: tuple[Tensor, ...] = ()
