"""Pictures and settings that nobody thought of, made by hypothesis: taken, or refused in one sentence."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import advanced_image_processing as driver
import diffusion_demo
import fgsm
from benchmarks import __main__ as benchmarks
from benchmarks import faults
from imagelab.data.boxes import BoxedPictures
from imagelab.data.datasets import load_dataset
from imagelab.data.masks import IGNORE, MaskedPictures, load_masked
from imagelab.data.pictures import open_picture
from imagelab.report import figures, predict
from imagelab.report.results import start_result, write_json
from imagelab.setup.runtime import UserError
from imagelab.setup.settings import Settings
from imagelab.techniques import classifier
from imagelab.training.checkpoints import load_checkpoint
from studies import denoising_autoencoder, detection, inpainting, segmentation

# The same examples each time, and no clock: a test that fails must fail again.
STEADY = settings(derandomize=True, deadline=None, database=None,
                  suppress_health_check=list(HealthCheck))  # fmt: skip
BITS = {"1": 1, "L": 8, "P": 8, "LA": 16, "RGB": 24, "RGBA": 32, "CMYK": 32, "YCbCr": 24, "LAB": 24,
        "I;16": 16, "I": 32, "F": 32}  # fmt: skip
FORMATS = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "TIFF": tuple(BITS), "JPEG": ("L", "RGB", "CMYK", "YCbCr"), "BMP": ("1", "L", "P", "RGB"),
    "GIF": ("1", "L", "P", "RGB"), "WEBP": ("L", "RGB", "RGBA"), "PPM": ("1", "L", "RGB", "I"),
}  # fmt: skip


@st.composite
def picture_files(
    draw, damage: bool = True, size: tuple[int, int] | None = None
) -> tuple[bytes, tuple[int, int], bool]:
    """A file, the size of its picture, and whether it is whole."""
    kind = draw(st.sampled_from(sorted(FORMATS)))
    mode = draw(st.sampled_from(FORMATS[kind]))
    width, height = size or (draw(st.integers(1, 70)), draw(st.integers(1, 70)))
    row = (width * BITS[mode] + 7) // 8
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    flat = draw(st.booleans())
    values = bytes(row * height) if flat else rng.bytes(row * height)
    if mode == "F" and not flat:  # the bytes of numbers; NaN is another test's
        values = (100 * rng.standard_normal((height, width))).astype(np.float32).tobytes()
    picture = Image.frombytes(mode, (width, height), values)
    if mode == "P":
        picture.putpalette(rng.bytes(768))
    buffer = io.BytesIO()
    picture.save(buffer, format=kind)
    raw = buffer.getvalue()
    if not damage or draw(st.booleans()):
        return raw, (width, height), True
    if draw(st.booleans()):
        return raw[: draw(st.integers(0, len(raw) - 1))], (width, height), False
    changed = bytearray(raw)
    for at in draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=20)):
        changed[at] ^= draw(st.integers(1, 255))
    return bytes(changed), (width, height), False


@contextlib.contextmanager
def one_sentence():
    """Nothing happens, or a UserError of one line."""
    try:
        yield
    except UserError as error:
        assert str(error).strip() and "\n" not in str(error)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, on damaged files
@settings(STEADY, max_examples=400)
@given(file=picture_files(), suffix=st.sampled_from(["png", "jpg", "dat", ""]))
def test_any_picture_is_read_or_refused(tmp_path_factory, file, suffix):
    raw, (width, height), whole = file
    path = tmp_path_factory.getbasetemp() / f"any.{suffix}"
    path.write_bytes(raw)
    with one_sentence():
        picture = open_picture(path)
        assert picture.mode in ("L", "RGB")
        assert not whole or picture.size == (width, height)
        return
    assert not whole or min(width, height) < 8  # what is whole and large enough must be read


# --- the scripts' own options ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> Path:
    """Checkpoints of a small segmentation and a small detector, trained for two steps on noise."""
    folder = tmp_path_factory.mktemp("networks")
    images = torch.randint(0, 256, (4, 3, 32, 48), dtype=torch.uint8)
    masks = torch.randint(0, 3, (4, 32, 48), dtype=torch.uint8)
    noise = MaskedPictures("noise", "the tests", ("a", "b", "c"), images, masks, images, masks)
    segmentation.train(
        segmentation.Config(epochs=1, batch_size=2, widths=(4, 8), output_dir=folder), noise
    )
    squares = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    boxes, labels = [torch.tensor([[8.0, 8, 40, 40]])] * 4, [torch.tensor([1])] * 4
    things = BoxedPictures(
        "noise", "the tests", ("a", "b"), squares, boxes, labels, squares, boxes, labels
    )
    detection.train(
        detection.Config(epochs=1, batch_size=2, width=4, size=64, output_dir=folder), things
    )
    return folder


def see(path: Path, networks: Path, output: Path) -> None:
    model = networks / segmentation.MODELS / "noise.pth"
    config = predict.PredictMasks(image=path, output=output, model=model)
    predict.predict_masks(config, segmentation.load_own)


def find(path: Path, networks: Path, output: Path) -> None:
    model = networks / detection.MODELS / "noise.pth"
    config = predict.PredictBoxes(source=str(path), output=output, model=model, least=0.01)
    predict.predict_boxes(config, detection.load_own)


def denoise(path: Path, networks: Path, output: Path) -> None:
    denoising_autoencoder.run_denoise(denoising_autoencoder.Denoise(image=path, output=output))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("script", [see, find, denoise])
@settings(STEADY, max_examples=25)
@given(file=picture_files())
def test_scripts_that_change_pictures(script: Callable, networks, tmp_path_factory, file):
    """What is written has the picture's own size."""
    raw, size, whole = file
    folder = tmp_path_factory.getbasetemp()
    (folder / "any.png").write_bytes(raw)
    output = folder / "changed.png"
    output.unlink(missing_ok=True)
    with one_sentence():
        script(folder / "any.png", networks, output)
        with Image.open(output) as changed:
            assert not whole or changed.size == size
        return
    assert not output.exists() and (not whole or min(size) < 8)


@st.composite
def pictures_with_holes(draw) -> tuple[bytes, bytes]:
    """A picture, and one that says what is hidden of it: any, or of the same size, half of it white."""
    raw, size, _ = draw(picture_files())
    if draw(st.booleans()):
        return raw, draw(picture_files())[0]
    mask = Image.new("L", size)
    mask.paste(255, (0, size[1] // 2, *size))
    buffer = io.BytesIO()
    mask.save(buffer, format="PNG")
    return raw, buffer.getvalue()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_inpainting_of_any_picture_with_any_hole(unet_run, tmp_path):
    """Refused in a sentence, or filled; both happen."""
    files = {name: tmp_path / f"{name}.png" for name in ("any", "hole", "filled")}
    outcomes = []

    @settings(STEADY, max_examples=20)
    @given(drawn=pictures_with_holes())
    def fill(drawn: tuple[bytes, bytes]) -> None:
        files["any"].write_bytes(drawn[0])
        files["hole"].write_bytes(drawn[1])
        files["filled"].unlink(missing_ok=True)
        with one_sentence():
            inpainting.run_inpaint(
                inpainting.Inpaint(
                    image=files["any"], mask=str(files["hole"]), samples=1,
                    output=files["filled"], model=unet_run / inpainting.Inpaint.model,
                    repaint_steps=2, repeats=1, guess_steps=1,
                )
            )  # fmt: skip
        outcomes.append(files["filled"].exists())

    fill()
    assert 4 <= sum(outcomes) < len(outcomes)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("victim", ["cnn", "resnet18"])
def test_any_picture_is_attacked_or_refused(victim, judged, monkeypatch):
    """As a digit, and as a photograph, by a small network in place of ImageNet's."""
    torch.manual_seed(0)
    small = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 5))
    monkeypatch.setattr(fgsm, "imagenet_resnet18", lambda *_: (small, tuple("abcde")))
    data, path, outcomes = load_dataset("mnist-5k", Path()).shortened(), judged / "any.png", []
    path.touch()
    config = fgsm.Config(image=path, quick=True, output_dir=judged, victim=victim)

    @settings(STEADY, max_examples=20)
    @given(file=picture_files(damage=False))
    def attack(file) -> None:
        path.write_bytes(file[0])
        result = start_result("fgsm", "", "", config, fgsm.PICTURES, torch.device("cpu"), data)
        with one_sentence():
            fgsm.report_noise(config, result)
            fgsm.report_own_picture(config, data, path, result)
            outcomes.append("your picture: smallest ε that fools" in result.metrics)

    attack()
    assert len(outcomes) >= 4 and any(outcomes)  # not refused, and fooled


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_any_picture_drowns_or_is_refused(tmp_path):
    path, outcomes = tmp_path / "any.png", []

    @settings(STEADY, max_examples=6)
    @given(file=picture_files())
    def drown(file) -> None:
        path.write_bytes(file[0])
        outcomes.append(False)
        with one_sentence():
            diffusion_demo.run(diffusion_demo.Config(image=path, quick=True, output_dir=tmp_path))
            outcomes[-1] = True

    drown()
    assert True in outcomes


# --- one's own folders ----------------------------------------------------------------------------


@settings(STEADY, max_examples=60)
@given(
    white=st.sampled_from([1, 255, 4095, 65_535]), sigma=st.floats(0, 0.6, allow_subnormal=False),
    whole=st.booleans(), mean=st.floats(0.3, 0.7), outliers=st.integers(0, 5),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_any_range_of_values_is_found(tmp_path_factory, white, sigma, whole, mean, outliers, seed):
    """A ramp under noise of both signs, with a few wild values, comes out as it went in."""
    rng = np.random.default_rng(seed)
    ramp = np.clip(np.linspace(mean - 0.5, mean + 0.5, 6400), 0, 1).reshape(80, 80)
    values = (ramp + rng.normal(0, sigma, ramp.shape)) * white
    if whole and white > 1:  # whole numbers, as a sensor has them: none beyond its range
        values = values.clip(0, white).round()
        white = 2 ** max(int(white).bit_length(), 8) - 1
    values.flat[rng.integers(0, values.size, outliers)] = 1e6
    path = tmp_path_factory.getbasetemp() / "any.tif"
    Image.fromarray(values.astype(np.float32)).save(path)
    read = np.asarray(open_picture(path)).astype(float)
    expected = (values / white).clip(0, 1) * 255
    assert np.abs(read - expected).max() <= 0.51


@settings(STEADY, max_examples=40)
@given(
    kinds=st.lists(st.integers(0, 255), min_size=2, max_size=6, unique=True), lossy=st.booleans(),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_any_masks_have_few_classes_or_are_refused(tmp_path_factory, kinds, lossy, seed):
    """No more classes than a reader can look at, and none that no mask has, but for gaps of one."""
    folder = Path(tempfile.mkdtemp(dir=tmp_path_factory.getbasetemp()))
    rng = np.random.default_rng(seed)
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for k in range(10):
        cells = np.array(kinds, np.uint8)[rng.integers(0, len(kinds), (4, 6))]
        cells[0, : len(kinds)] = kinds  # each occurs
        mask = Image.fromarray(cells.repeat(8, 0).repeat(8, 1)).rotate(7, fillcolor=kinds[0])
        mask.save(folder / "masks" / f"{k}.{'jpg' if lossy and k == 3 else 'png'}")
        Image.new("RGB", (48, 32)).save(folder / "images" / f"{k}.png")
    with one_sentence():
        data = load_masked(f"folder:{folder / 'images'}:{folder / 'masks'}", Path(), height=32)
        assert not lossy
        names = {f"class {kind}" for kind in kinds}
        assert len(names - set(data.classes)) <= 1  # 255
        assert len(data.classes) <= 2 * len(kinds)
        assert data.masks[data.masks != IGNORE].max() < len(data.classes)


NAMES = st.text(
    st.one_of(st.characters(exclude_characters="/\0"), st.sampled_from("$\n\udce9あ\\{}^_")),
    min_size=1, max_size=12,
).filter(lambda name: name[0] != "." and len(os.fsencode(name)) < 200)  # fmt: skip


def encodable(name: str) -> bool:
    """Whether Linux can have a file of this name."""
    try:
        return os.fsdecode(os.fsencode(name)) == name
    except UnicodeEncodeError:
        return False


@pytest.mark.skipif(os.name == "nt", reason="other names are allowed there")
@settings(STEADY, max_examples=30)
@given(
    names=st.lists(NAMES.filter(lambda name: name.isprintable() or "\n" in name or "\udce9" in name)
                   .map(lambda name: name.replace("\x85", " ")), min_size=1, max_size=3, unique=True),
    counts=st.lists(st.integers(1, 13), min_size=3, max_size=3),
)  # fmt: skip
def test_any_class_folders(tmp_path_factory, names, counts):
    """Of each class with two pictures or more some are held out, and one is never held out alone; names
    can be drawn, shown and written."""
    assume(all(map(encodable, names)) and "__MACOSX" not in names)
    root = Path(tempfile.mkdtemp(dir=tmp_path_factory.getbasetemp()))
    for name, count in zip(names, counts, strict=False):
        (root / name).mkdir()
        for k in range(count):
            Image.new("L", (9, 9)).save(root / name / f"{k:02}.png")
    assume({name.lower() for name in names} - {"train", "val", "test", "valid", "validation"})
    with one_sentence():
        data = load_dataset(f"folder:{root}", Path(), image_size=8)
        train = data.labels.bincount(minlength=len(names))
        test = data.test_labels.bincount(minlength=len(names))
        assert train.min() >= 1 and ((test >= 1) == (train + test >= 2)).all()
        assert sorted((train + test).tolist()) == sorted(counts[: len(names)])
        write_json(root / "a.json", {"classes": data.classes, "folder": root / names[0]})
        figure, axes = figures.new_figure(4, 2)
        figures.class_histogram(axes[0, 0], {data.classes[0]: test.tolist()}, data.classes)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            figures.save_figure(figure, root / "a.png")
        return
    few = sum(counts[: len(names)]) < 10
    assert few or max(counts[: len(names)]) == 1


@settings(STEADY, max_examples=15)
@given(lr=st.sampled_from([1e-3, 1e3, 1e15, 1e30]), bad=st.sampled_from([None, "nan", "inf"]))
def test_no_checkpoint_holds_what_is_not_finite(stripes, tmp_path_factory, lr, bad):
    """Whatever the learning rate: the training ends well, or in a sentence; nor is such a file loaded."""
    folder = Path(tempfile.mkdtemp(dir=tmp_path_factory.getbasetemp()))
    path, data = folder / "a.pth", stripes.shortened(64, 16)
    model = classifier.new_classifier(data, 0)
    config = classifier.ClassifierConfig(epochs=2, batch_size=32, lr=lr)
    with one_sentence():
        classifier.train_classifier(model, data, config, path)
    if path.exists():
        saved = torch.load(path, weights_only=True)
        weights = saved["model"]["classifier"]
        assert all(value.isfinite().all() for value in weights.values())
        if bad is not None:
            next(iter(weights.values())).flatten()[0] = float(bad)
            torch.save(saved, path)
            with pytest.raises(UserError, match="not finite"):
                load_checkpoint(path, classifier.SCRIPT)


# --- settings -------------------------------------------------------------------------------------

ANYTHING = {
    int: st.one_of(st.sampled_from([0, 1, 2, -1, 2**31, 2**63]), st.integers()),
    float: st.one_of(st.sampled_from([0.0, 1.0, -1.0, 1e-9, 1e300]),
                     st.floats(allow_subnormal=False)),
    bool: st.booleans(),
    str: st.one_of(st.sampled_from(["", "auto", "cuda:99"]), st.text(max_size=9)),
    Path: st.sampled_from([Path(), Path("a.npz"), Path("ä b/c.png")]),
}  # fmt: skip


def values_of(hint) -> st.SearchStrategy:
    """Values of a field's type, sensible or not."""
    if hint in ANYTHING:
        return ANYTHING[hint]
    if hint is type(None):
        return st.none()
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return st.sampled_from(parts)
    if origin is tuple:
        return st.lists(values_of(parts[0]), max_size=4).map(tuple)
    return st.one_of([values_of(part) for part in parts])  # a union


def all_settings() -> list[type]:
    scripts = [driver.module_of(name).Config for name in driver.EVERYTHING]
    commands = [predict.PredictMasks, predict.PredictBoxes, inpainting.Inpaint]
    commands += [denoising_autoencoder.Denoise, denoising_autoencoder.Photographs]
    commands += [denoising_autoencoder.Compare]
    return [driver.Config, *scripts, *commands, benchmarks.Config, faults.Config]


@pytest.mark.parametrize(
    "kind", all_settings(), ids=lambda kind: f"{kind.__module__}.{kind.__name__}"
)
@settings(STEADY, max_examples=60)
@given(data=st.data())
def test_any_settings_are_taken_or_refused(kind: type[Settings], data):
    hints = get_type_hints(kind)
    names = data.draw(st.sets(st.sampled_from([f.name for f in fields(kind)]), max_size=5))
    names |= {field.name for field in fields(kind) if field.default is MISSING}
    values = {name: data.draw(values_of(hints[name]), label=name) for name in sorted(names)}
    with one_sentence():
        config = kind(**values)
        if values.get("checkpoint") is not None:
            assert config.sample_only  # which --checkpoint means
            names.discard("sample_only")
        assert all(getattr(config, name) is values[name] for name in names)
