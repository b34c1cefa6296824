"""The training loss and its terms."""

from d2ls.losses.contrastive import contrastive_ratio, infonce
from d2ls.losses.loss import D2LSLoss, LossTerms

__all__ = ["D2LSLoss", "LossTerms", "contrastive_ratio", "infonce"]
