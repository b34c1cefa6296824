"""Dictionary and pixel features query each other, stage after stage."""

from torch import Tensor, nn

from d2ls.model.attention import DictionaryReadsPixels, PixelsReadDictionary, Route


class ReadPixels(nn.Module):
    """D <- LN(D + attention(q = D + D0, k = E + P, v = E))."""

    def __init__(self, embed_dim: int, heads: int, route: Route) -> None:
        super().__init__()
        self.attention = DictionaryReadsPixels(embed_dim, heads, route)
        self.norm = nn.LayerNorm(embed_dim, eps=1e-5)

    def forward(
        self, dictionary: Tensor, initial: Tensor, features: Tensor, position: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Refines the dictionary D (B S K C) by the pixel features E (B T N C); returns D and E, unchanged."""
        read, features = self.attention(dictionary + initial, features, position)
        return self.norm(dictionary + read), features


class Stage(nn.Module):
    """One interactor stage: the dictionary reads the pixels, then the pixels read the dictionary."""

    def __init__(self, embed_dim: int, heads: int, route: Route) -> None:
        super().__init__()
        self.read_pixels = ReadPixels(embed_dim, heads, route)
        self.read_dictionary = PixelsReadDictionary(embed_dim, heads, route)

    def forward(
        self, dictionary: Tensor, initial: Tensor, features: Tensor, position: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Refines D (B S K C), then E (B T N C, returned as B S N C)."""
        dictionary, features = self.read_pixels(dictionary, initial, features, position)
        features = self.read_dictionary(features, position, dictionary + initial, dictionary)
        return dictionary, features


class Interactor(nn.Module):
    """L stages and a closing attention, for all branches at once.

    Args:
        stages: L; with 0 the closing attention alone remains.
        embed_dim: C.
        heads: H.
        route: how the attentions are computed; the result is the same.
    """

    def __init__(self, stages: int, embed_dim: int, heads: int, route: Route) -> None:
        super().__init__()
        self.stages = nn.ModuleList(Stage(embed_dim, heads, route) for _ in range(stages))
        self.closing = ReadPixels(embed_dim, heads, route)

    def forward(self, initial: Tensor, features: Tensor, position: Tensor) -> tuple[list[Tensor], Tensor]:
        """Refines dictionary and pixel features.

        Args:
            initial: D0 of every branch, B S K C.
            features: E0, B 1 N C, shared by the branches.
            position: P, N C.

        Returns:
            The dictionaries (D0, one a stage, the closing one; B S K C each), and E, B S N C (B 1 N C where L = 0).
        """
        dictionaries = [initial]
        for stage in self.stages:
            dictionary, features = stage(dictionaries[-1], initial, features, position)
            dictionaries.append(dictionary)
        dictionary, features = self.closing(dictionaries[-1], initial, features, position)
        return [*dictionaries, dictionary], features
