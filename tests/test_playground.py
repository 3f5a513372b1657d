"""What playground.py packs into the report: which panels, which numbers, how many bytes."""

from __future__ import annotations

import base64
import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import mlp_diffusion
from gan_mnist import Generator
from imagelab.data.datasets import EMBEDDED, Dataset
from imagelab.data.pictures import write_gif, write_png
from imagelab.report import page as report
from imagelab.report import playground
from imagelab.report.results import Result
from imagelab.techniques.classifier import DigitCNN
from imagelab.techniques.diffusion import cosine_schedule, linear_schedule, trailing_steps
from imagelab.techniques.unet import UNet
from imagelab.training.checkpoints import save_checkpoint
from studies.vae import VAE

FACTS = {"date": "2030-01-02 03:04", "seed": 7, "dataset": EMBEDDED, "quick": False,
         "device": "cpu, 2 threads", "torch": "2.0"}  # fmt: skip
DESCRIBED = {"name": EMBEDDED, "source": "made by the tests", "shape": [1, 28, 28]}
FOLDERS = {
    "fgsm": "adversarial_images", "diffusion_demo": "diffusion_images", "gan_mnist": "fake_images",
    "mlp_diffusion": "diffusion_samples", "vae": "study_images/vae",
    "adversarial_training": "study_images/adversarial_training",
    "unet_diffusion": "study_images/unet_diffusion",
}  # fmt: skip
PANELS = {"fgsm": "attack", "gan_mnist": "gan", "mlp_diffusion": "diffusion", "vae": "vae",
          "diffusion_demo": "noise", "unet_diffusion": "ask"}  # fmt: skip
T = 12
UNET = {"widths": (8, 12), "blocks": 1, "attention": (), "patch_size": 2, "T": 1000, "schedule": "cosine",
        "prediction": "v"}  # fmt: skip
SIGMAS = (0.1, 0.2, 0.3)


def tiny_data() -> Dataset:
    """Ten classes of bars: a data set of the right shape, made at once."""
    images = torch.zeros(40, 1, 28, 28, dtype=torch.uint8)
    labels = torch.arange(40) % 10
    for k in range(40):
        images[k, 0, 5:23, 4 + 2 * labels[k] : 7 + 2 * labels[k]] = 200 + k
    classes = tuple("0123456789")
    return Dataset(EMBEDDED, "made by the tests", classes, images, labels, images, labels)


def save(path: Path, script: str, model: dict, config=None, extra=None, ema=None) -> None:
    """A checkpoint of that script's, of what a panel reads of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, {
        "script": script, "config": config or {}, "dataset": DESCRIBED, "epoch": 1, "step": 1,
        "model": model, "ema": ema or {}, "optimizer": {}, "rng": {}, "history": {},
        "extra": extra or {},
    })  # fmt: skip


def rounded(module: nn.Module, bits: int) -> nn.Module:
    """The network with weights that lose nothing when they are packed."""
    for value in module.state_dict().values():
        value.copy_(torch.from_numpy(playground.rounded(value, bits)).float())
    return module.eval().requires_grad_(False)


def networks() -> dict[str, nn.Module]:
    """Untrained ones, the same each time; their weights are float16 numbers."""
    torch.manual_seed(3)
    drawing = {"generator": Generator(100, (1, 28, 28)), "corrected": denoiser("corrected"),
               "literal": denoiser("literal"), "vae": VAE((1, 28, 28), 2)}  # fmt: skip
    reading = {"reader": DigitCNN((1, 28, 28), 10), "pgd": DigitCNN((1, 28, 28), 10)}
    drawing["unet"] = unet(UNET)
    return {name: rounded(net, playground.DRAWING) for name, net in drawing.items()} | {
        name: rounded(net, playground.READING) for name, net in reading.items()
    }


def unet(config: dict) -> nn.Module:
    """A U-Net of ten classes all of whose layers do something, as they do once they have learnt."""
    torch.manual_seed(4)
    network = UNet(1, config["widths"], config["blocks"], (), config["patch_size"], classes=10)
    for value in network.parameters():
        if value.dim() > 1 or not value.any():
            nn.init.normal_(value, std=0.2)
    return network.eval().requires_grad_(False)


def schedule(name: str):
    return linear_schedule(T, 1e-3, 0.02 if name == "literal" else 0.6)


def denoiser(name: str, bound: str = "tanh") -> nn.Module:
    return mlp_diffusion.MLPDenoiser(784, schedule(name), mlp_diffusion.RECIPES[name], bound)


def record(root: Path, name: str, **config) -> Result:
    """The results.json of a demo, without pictures."""
    run = Result(name, f"{name}: a demo", "It is made by the tests.", root / FOLDERS[name],
                 {"quick": False, "data_dir": "data", **config}, 7, "cpu", dataset=DESCRIBED)  # fmt: skip
    run.add_metric("accuracy", 0.25, 1234)
    return run


def everything(root: Path) -> dict[str, nn.Module]:
    """An output folder in which all demos with a panel are done; the networks in it."""
    nets = networks()
    weights = {name: net.state_dict() for name, net in nets.items()}
    save(
        root / f"classifier_models/{EMBEDDED}_cnn.pth",
        "classifier",
        {"classifier": weights["reader"]},
    )
    save(root / "GAN_models/mlp_gan.pth", "gan_mnist", {"generator": weights["generator"]})
    for file, name in (("fast_mlp_diffusion", "corrected"), ("compared_literal", "literal")):
        extra = {"alpha_bar": schedule(name).alpha_bar,
                 "predicts_x0": torch.tensor(name == "corrected"),
                 "tanh": torch.tensor(True)}  # fmt: skip
        save(root / f"diffusion_models/{file}.pth", "mlp_diffusion", {}, {"recipe": name}, extra,
             weights[name])  # fmt: skip
    save(root / "study_models/vae/latent_2.pth", "vae", {"vae": weights["vae"]})
    save(
        root / "study_models/unet_diffusion/unet.pth",
        "unet_diffusion",
        {},
        UNET,
        {},
        weights["unet"],
    )
    save(root / "study_models/adversarial_training/pgd.pth", "adversarial_training",
         {"classifier": weights["pgd"]})  # fmt: skip
    for name in FOLDERS:
        run = record(root, name, compare=True)
        if name == "diffusion_demo":
            noisy_pictures(run)
        run.save()
    return nets


def noisy_pictures(run: Result) -> np.ndarray:
    """What diffusion_demo.py leaves: its steps, an animation that begins clean, restored steps."""
    rng = np.random.default_rng(0)
    clean = np.tile(np.linspace(0.2, 0.8, 64), (64, 1))
    frames = [clean]
    for i, sigma in enumerate(SIGMAS, start=1):
        frames.append(np.clip(clean + rng.normal(0, sigma, clean.shape), 0, 1))
        write_png(
            run.add_file(f"step_{i}.png", f"After step {i}, σ = {sigma:.2f}.", False), frames[-1]
        )
        path = run.add_file(f"restored_{i}_non-local_means.png", "Restored.", False)
        write_png(path, 0.5 * (clean + frames[-1]))
    write_gif(run.add_file("whole_way.gif", "The whole way.", False), frames)
    return clean


def rows(*names: str) -> list[dict]:
    return [{"name": name, "status": "done", "seconds": 4.2, "error": "", "folder": FOLDERS[name],
             "figure": "accuracy: 0.25", "n": 1234} for name in names]  # fmt: skip


def write(root: Path, *names: str) -> str:
    report.write_report(root / "report.html", root, rows(*names), FACTS)
    return (root / "report.html").read_text(encoding="utf-8")


def panels_of(page: str) -> list[str]:
    return re.findall(r'role="tabpanel" id="play-(\w+)"', page)


def data_of(page: str) -> dict:
    return json.loads(re.search(r'id="playground-data">(.*?)</script>', page)[1])


@pytest.fixture
def no_data(monkeypatch):
    monkeypatch.setattr(playground, "load_dataset", lambda *_: tiny_data())


@pytest.fixture
def root(tmp_path, no_data) -> Path:
    everything(tmp_path)
    return tmp_path


def test_all_panels_and_nothing_from_outside(root):
    page = write(root, *FOLDERS)
    assert panels_of(page) == ["attack", "gan", "diffusion", "ask", "vae", "noise"]
    assert not re.search(r"https?:|url\(|@import|\bfetch\(|XMLHttpRequest|importScripts", page)
    assert not re.search(r"\bsrc=\"(?!data:)", page)
    assert re.search(r'<section id="playground"[^>]* hidden>', page)  # without JavaScript
    assert page.count("</script>") == len(re.findall("<script", page))


@pytest.mark.parametrize(("demo", "panel"), PANELS.items())
def test_a_report_of_one_demo_has_its_own_panel(root, demo, panel):
    page = write(root, demo)
    assert panels_of(page) == [panel]
    assert f'href="#play-{panel}"' in page
    text = html.unescape(re.search(rf'id="play-{panel}".*?</div>', page, re.DOTALL)[0])
    about, first = re.findall(r"<p>(.*?)</p>", text, re.DOTALL)
    assert 2 <= len(re.findall(r"[.!](?: |$)", about)) <= 3 and "Try first:" in first


def test_without_a_demo_that_plays_there_is_no_playground(root, tmp_path):
    page = write(root)
    assert "playground" not in page and not panels_of(page)


def test_the_second_reader_is_there_when_its_study_was_run(root):
    assert len(data_of(write(root, "fgsm"))["panels"]["attack"]["readers"]) == 1
    page = write(root, "fgsm", "adversarial_training")
    names = [reader["name"] for reader in data_of(page)["panels"]["attack"]["readers"]]
    assert names == ["Trained as usual", "Trained on attacks"]


def test_a_network_with_layers_that_the_page_does_not_know_is_left_out(root):
    path = root / "study_models/adversarial_training/pgd.pth"
    saved = torch.load(path, weights_only=True)
    torch.save({**saved, "config": {"network": "strided"}}, path)
    page = write(root, "fgsm", "adversarial_training")
    assert len(data_of(page)["panels"]["attack"]["readers"]) == 1


def test_a_study_of_attacks_alone_shows_its_own_networks(root, tmp_path):
    for path in (root / "classifier_models").iterdir():
        path.unlink()
    page = write(root, "adversarial_training")
    assert panels_of(page) == ["attack"]
    assert data_of(page)["reader"] == "pgd"


@pytest.mark.parametrize("harm", ["gone", "cut short", "of other data", "of no known kind"])
def test_a_checkpoint_that_cannot_be_used_leaves_its_panel_out(root, harm):
    path = root / "GAN_models/mlp_gan.pth"
    if harm == "gone":
        path.unlink()
    elif harm == "cut short":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        saved = torch.load(path, weights_only=True)
        if harm == "of other data":
            saved["dataset"]["name"] = "fashion-mnist"
        else:
            saved["model"] = {"generator": {"other.weight": torch.ones(2)}}
        torch.save(saved, path)
    page = write(root, "gan_mnist", "fgsm")
    assert panels_of(page) == ["attack"]
    assert "weights-generator" not in page


def test_diffusion_needs_to_be_told_how_to_sample(root):
    path = root / "diffusion_models/fast_mlp_diffusion.pth"
    saved = torch.load(path, weights_only=True)
    save(path, "mlp_diffusion", {}, saved["config"], {}, saved["ema"])
    assert "playground" not in write(root, "mlp_diffusion")


def test_the_literal_recipe_stands_beside_the_corrected_one_where_they_were_compared(root):
    recipes = data_of(write(root, "mlp_diffusion"))["panels"]["diffusion"]["recipes"]
    assert [(r["name"], r["predicts"], r["bound"]) for r in recipes] == [
        ("corrected", "x0", "tanh"), ("literal", "eps", "")
    ]  # fmt: skip
    assert recipes[1]["alphaBar"] == schedule("literal").alpha_bar.tolist()
    record(root, "mlp_diffusion", compare=False).save()  # the file is of an earlier run
    recipes = data_of(write(root, "mlp_diffusion"))["panels"]["diffusion"]["recipes"]
    assert [recipe["name"] for recipe in recipes] == ["corrected"]


def test_the_u_net_brings_its_steps_and_its_worker(root):
    page = write(root, "unet_diffusion")
    panel = data_of(page)["panels"]["ask"]
    assert panel["facts"] == {"levels": 2, "blocks": 1, "patchSize": 2, "side": 28}
    assert panel["predicts"] == "v"
    times, alpha_bar = trailing_steps(1000, 20), cosine_schedule(1000).alpha_bar
    assert [step["t"] for step in panel["steps"]] == [t / 1000 for t in times]
    assert [step["alphaBar"] for step in panel["steps"]] == alpha_bar[times].tolist()
    assert page.count('id="unet-worker"') == 1
    assert 'id="unet-worker"' not in write(root, "gan_mnist")


def test_a_u_net_that_the_worker_does_not_know_has_no_panel(root):
    path = root / "study_models/unet_diffusion/unet.pth"
    saved = torch.load(path, weights_only=True)
    for unknown in ({"attention": [1]}, {"pool": "max"}, {"variance": "learned"}):
        save(path, "unet_diffusion", {}, {**UNET, **unknown}, {}, saved["ema"])
        assert "playground" not in write(root, "unet_diffusion")


@pytest.mark.parametrize("described", [
    None, {**DESCRIBED, "shape": [3, 32, 32]}, {**DESCRIBED, "name": "folder:x"},
    {**DESCRIBED, "name": "mnist"},
])  # fmt: skip
def test_data_that_the_page_cannot_draw_or_would_have_to_download(root, described, monkeypatch):
    monkeypatch.setattr(playground, "load_dataset", lambda *_: pytest.fail("asked for"))
    for name in PANELS:
        run = record(root, name, data_dir=str(root / "nowhere"))
        run.dataset = described
        run.save()
    assert "playground" not in write(root, *PANELS)  # the noisy pictures are in no record now


def test_the_ordinary_network_of_an_earlier_quick_run_is_not_taken(root):
    record(root, "fgsm", quick=True).save()
    assert "playground" not in write(root, "fgsm")


def test_held_out_digits_are_three_of_each_class(root):
    digits = data_of(write(root, "fgsm"))["panels"]["attack"]["digits"]
    assert digits["labels"] == [k for k in range(10) for _ in range(3)]
    images = np.frombuffer(base64.b64decode(digits["images"]), np.uint8).reshape(-1, 28, 28)
    data = tiny_data()
    for image, label in zip(images, digits["labels"], strict=True):
        assert any(
            (image == one.numpy()).all() for one in data.test_images[data.test_labels == label, 0]
        )


def test_the_first_layer_moves_most_along_the_first_direction(root):
    ways = torch.tensor(data_of(write(root, "gan_mnist"))["panels"]["gan"]["directions"])
    weight = networks()["generator"].layers[0].weight
    moved = (ways @ weight.T).norm(dim=1)
    assert (moved[:-1] >= moved[1:]).all()
    other = torch.nn.functional.normalize(torch.randn(200, 100), dim=1)
    assert (moved[0] > (other @ weight.T).norm(dim=1)).all()
    torch.testing.assert_close(ways @ ways.T, torch.eye(len(ways)), atol=1e-3, rtol=0)


def test_the_marks_of_the_plane_are_the_encoder_s(root):
    panel = data_of(write(root, "vae"))["panels"]["vae"]
    data = tiny_data()
    mean, _ = networks()["vae"].encode(data.test_images / 255)
    torch.testing.assert_close(torch.tensor(panel["points"]), mean, atol=0.006, rtol=0)
    assert panel["labels"] == data.test_labels.tolist()


def test_the_noisy_pictures_are_exactly_those_of_the_run(root, tmp_path):
    panel = data_of(write(root, "diffusion_demo"))["panels"]["noise"]
    assert panel["sigmas"] == list(SIGMAS)

    def pixels(url: str) -> np.ndarray:
        path = tmp_path / "one.webp"
        path.write_bytes(base64.b64decode(url.split(",")[1]))
        return np.asarray(Image.open(path).convert("RGB"))

    for k, url in enumerate(panel["steps"], start=1):
        expected = np.asarray(Image.open(root / f"diffusion_images/step_{k}.png"))
        assert (pixels(url) == expected[..., None]).all()
    clean = np.tile(np.linspace(0.2, 0.8, 64), (64, 1))
    assert np.abs(pixels(panel["clean"])[..., 0] / 255 - clean).max() < 0.51 / 255
    assert list(panel["restored"]) == ["non-local means"]
    assert len(panel["restored"]["non-local means"]) == 3


def test_large_pictures_are_cropped_not_scaled():
    picture = np.arange(300 * 400, dtype=np.int64).reshape(300, 400)
    part = playground.middle(picture)
    assert part.shape == (playground.CROP, playground.CROP)
    assert part[0, 0] == (300 - 192) // 2 * 400 + (400 - 192) // 2 and part[0, 1] == part[0, 0] + 1
    assert playground.middle(picture[:10, :20]).shape == (10, 20)


@pytest.mark.parametrize("bits", [10, 8, 6, 1])
def test_numbers_survive_packing_with_as_many_bits_as_are_kept(bits):
    torch.manual_seed(0)
    values = torch.cat([torch.randn(1000) * scale for scale in (1e-3, 1, 100)])
    back = torch.from_numpy(playground.unpacked(playground.packed([values[:7], values[7:]], bits)))
    relative = ((back.float() - values).abs() / values.abs())[values.abs() > 1e-3]
    assert relative.max() <= 2.0 ** -(bits + 1) * 1.002 + 2**-11 * (bits < 10)
    assert (back.numpy() == playground.rounded(values, bits)).all()
    again = torch.from_numpy(playground.rounded(back, bits))
    assert (again == back).all()  # what is rounded stays


def test_numbers_too_large_for_float16_stay_finite():
    values = torch.tensor([1e9, -1e9, 65_504.0, 65_000.0, 0.0, -0.0, 1e-9])
    for bits in (10, 6):
        assert np.isfinite(playground.rounded(values, bits)).all()


def test_fewer_bits_take_fewer_bytes():
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    sizes = [len(playground.packed([values], bits)) for bits in (10, 6)]
    assert sizes[1] < 0.8 * sizes[0] < 0.8 * 4 / 3 * 2 * len(values)


def test_the_size_is_what_the_page_grows_by(root):
    play = playground.collect(root, {
        name: (root / folder, json.loads((root / folder / "results.json").read_text("utf-8")))
        for name, folder in FOLDERS.items()
    })  # fmt: skip
    page = write(root, *FOLDERS)
    without = len(page.encode()) - play.size()
    assert 0 < without < 60_000  # the report itself has no picture here
    assert page.count('id="weights-') == len(play.networks) == 7


def test_pictures_make_room_for_the_playground(root, monkeypatch):
    run = record(root, "fgsm")
    noise = np.random.default_rng(0).integers(0, 256, (100, 100), dtype=np.uint8)
    write_png(run.add_file("a.png", "A picture."), noise)
    run.save()
    size = len(write(root, "fgsm"))
    monkeypatch.setattr(report, "MAX_BYTES", size)
    assert "is not embedded" not in write(root, "fgsm")
    monkeypatch.setattr(report, "MAX_BYTES", 1_000_000)  # the network alone takes as much
    assert "is not embedded" in write(root, "fgsm")


def test_the_u_net_takes_no_room_from_the_pictures(root, monkeypatch):
    collect = playground.collect

    def with_a_large_one(*arguments):
        play = collect(*arguments)
        play.networks["unet"] += "A" * 3_000_000
        return play

    run = record(root, "unet_diffusion")
    noise = np.random.default_rng(0).integers(0, 256, (100, 100), dtype=np.uint8)
    write_png(run.add_file("a.png", "A picture."), noise)
    run.save()
    monkeypatch.setattr(report, "MAX_BYTES", len(write(root, "unet_diffusion")))
    monkeypatch.setattr(playground, "collect", with_a_large_one)
    page = write(root, "unet_diffusion")
    assert len(page) > 3_000_000 and "is not embedded" not in page


def test_the_time_embedding_is_that_of_the_script():
    expected = mlp_diffusion.time_embedding(50)
    torch.testing.assert_close(playground.time_embedding(50, 64), expected)


def test_no_text_in_the_data_can_end_its_script():
    play = playground.Playground(classes=("</script><b>", "x"))
    assert "<" not in play.json() and json.loads(play.json())["classes"][0] == "</script><b>"
    assert "</script" not in playground.SCRIPT.read_text(encoding="utf-8")
    assert "</script" not in playground.UNET.read_text(encoding="utf-8")
    assert "</style" not in playground.STYLE.read_text(encoding="utf-8")


def test_the_main_job_stays_below_ten_megabytes(main_job):
    page = (main_job / "report.html").read_text(encoding="utf-8")
    assert len(page.encode()) < 10_000_000
    assert panels_of(page) == ["attack", "gan", "diffusion", "noise"]
    assert "is not embedded" not in page
