import numpy as np
import pytest
import torch

from d2ls.errors import ConfigError, DataError
from d2ls.inference import PRESETS, Predictor, TTATransform, average_predictions, cost, tta_transforms
from tests.inference_stubs import LocalStub, model_info


def picture(*shape: int, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, shape).astype(dtype)


def test_one_image_and_a_batch() -> None:
    predictor = Predictor(LocalStub(), model_info())
    images = picture(2, 50, 41, 3)
    labels = predictor.predict(images)
    assert labels.shape == (2, 50, 41)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels[1], predictor.predict(images[1]))
    probabilities = predictor.probabilities(images[0])
    assert probabilities.shape == (4, 50, 41)
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(probabilities.argmax(0), labels[0])


def test_sixteen_bit_pixels_are_exact() -> None:
    predictor = Predictor(LocalStub(max_value=65535.0), model_info(dtype="uint16"))
    image = (picture(20, 20, 3, dtype="uint16") * 257).astype(np.uint16)
    expected = Predictor(LocalStub(), model_info()).probabilities(picture(20, 20, 3))
    np.testing.assert_allclose(predictor.probabilities(image), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (picture(8, 8, 4), "4 bands, the model takes 3 .red, green, blue."),
        (picture(8, 8, 3, dtype="uint16"), "uint16, the model was trained on uint8"),
        (picture(8, 8), "shape"),
        (picture(0, 8, 3), "shape"),
    ],
)
def test_pixels_that_do_not_fit_are_refused(image: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words):
        Predictor(LocalStub(), model_info()).predict(image)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta"])
def test_a_device_that_is_not_here_is_named(device: str) -> None:
    with pytest.raises(ConfigError, match=f"device {device}"):
        Predictor(LocalStub(), model_info(), device=device)


def test_an_unknown_preset_names_those_that_exist() -> None:
    with pytest.raises(ConfigError, match="flips_turns"):
        Predictor(LocalStub(), model_info(), tta="d4")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [(24, 24), (24, 37), (33, 20)])
def test_a_pointwise_function_does_not_mind_mirrors_and_turns(preset: str, size: tuple[int, int]) -> None:
    images = torch.rand(2, 3, *size)
    exact = [view for view in tta_transforms(preset) if view.scale == 1.0]
    seen = average_predictions(lambda x: x.softmax(1), images, tuple(exact))
    torch.testing.assert_close(seen, images.softmax(1), atol=1e-6, rtol=0)
    assert average_predictions(lambda x: x.softmax(1), images, tta_transforms(preset)).shape == images.shape


def test_presets_hold_what_their_names_say() -> None:
    image = torch.arange(12.0).view(1, 1, 3, 4)
    flips = {tuple(view.apply(image).flatten().tolist()) for view in PRESETS["flips"]}
    expected = [image, image.flip(-1), image.flip(-2), image.flip(-1, -2)]
    assert flips == {tuple(item.flatten().tolist()) for item in expected}
    turned = {
        (tuple(v.apply(image).shape), *v.apply(image).flatten().tolist()) for v in PRESETS["flips_turns"]
    }
    assert len(turned) == len(PRESETS["flips_turns"]) == 8
    assert {view.scale for view in PRESETS["flips_scales"]} == {0.75, 1.0, 1.25}
    assert cost("none") == 1
    assert cost("flips_turns") == 8
    assert cost("flips_scales") == pytest.approx(4 * (0.5625 + 1 + 1.5625))


@pytest.mark.parametrize("preset", ["flips", "flips_turns"])
def test_the_mean_is_that_of_probabilities_over_all_views(preset: str) -> None:
    """Compared with NumPy's flips and turns."""
    network = LocalStub()
    image = picture(20, 20, 3)

    def forward(array: np.ndarray) -> np.ndarray:
        raw = torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)[None]
        with torch.no_grad():
            return network(raw).logits.softmax(1)[0].permute(1, 2, 0).numpy()

    ways = []
    for mirrored in (False, True):
        for turns in (0, 2) if preset == "flips" else (0, 1, 2, 3):
            seen = np.rot90(image[:, ::-1] if mirrored else image, turns)
            back = np.rot90(forward(seen), -turns)
            ways.append(back[:, ::-1] if mirrored else back)
    result = Predictor(network, model_info(), tta=preset).probabilities(image)
    np.testing.assert_allclose(result, np.mean(ways, axis=0).transpose(2, 0, 1), atol=1e-6)


def ttach_mean(image: np.ndarray, preset: str) -> np.ndarray:
    """K H W by the library that most people use for this."""
    ttach = pytest.importorskip("ttach")
    transforms = {
        "flips": [ttach.HorizontalFlip(), ttach.VerticalFlip()],
        "flips_turns": [ttach.HorizontalFlip(), ttach.Rotate90([0, 90, 180, 270])],
        "larger": [
            ttach.HorizontalFlip(), ttach.VerticalFlip(), ttach.Scale([1, 1.25], "bilinear", align_corners=False),
        ],
    }[preset]  # fmt: skip
    wrapper = ttach.SegmentationTTAWrapper(
        _Probabilities(LocalStub()), ttach.Compose(transforms), merge_mode="mean"
    )
    with torch.no_grad():
        return wrapper(torch.from_numpy(image).permute(2, 0, 1)[None].float())[0].numpy()


class _Probabilities(torch.nn.Module):
    def __init__(self, network: LocalStub) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images).logits.softmax(1)


@pytest.mark.parametrize("preset", ["flips", "flips_turns"])
def test_the_mean_is_that_of_ttach(preset: str) -> None:
    image = picture(24, 32, 3)
    result = Predictor(LocalStub(), model_info(), tta=preset).probabilities(image)
    np.testing.assert_allclose(result, ttach_mean(image, preset), atol=1e-6)


def test_enlarging_views_are_those_of_ttach() -> None:
    """Shrinking views differ: ours are smoothed first, ttach drops pixels."""
    image = picture(24, 32, 3)
    network = LocalStub()
    chosen = [TTATransform(v.mirrored, v.turns, scale) for v in PRESETS["flips"] for scale in (1.0, 1.25)]
    raw = torch.from_numpy(image).permute(2, 0, 1)[None]
    with torch.no_grad():
        result = average_predictions(_Probabilities(network), raw, tuple(chosen))
    np.testing.assert_allclose(result[0].numpy(), ttach_mean(image, "larger"), atol=1e-6)


def test_scaled_views_keep_a_constant_image() -> None:
    view = TTATransform(mirrored=True, turns=1, scale=0.75)
    images = torch.full((1, 3, 21, 30), 0.3)
    seen = view.apply(images)
    assert seen.shape == (1, 3, 22, 16)
    torch.testing.assert_close(view.undo(seen, 21, 30), images)


def test_the_training_window_is_the_default() -> None:
    network = LocalStub()
    Predictor(network, model_info(window=24)).predict(picture(60, 60, 3))
    assert {shape[-2:] for shape in network.seen} == {(24, 24)}
    network.seen.clear()
    Predictor(network, model_info(window=24), window=40).predict(picture(60, 60, 3))
    assert {shape[-2:] for shape in network.seen} == {(40, 40)}
