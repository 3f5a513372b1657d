from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from conftest import run_here

import gan_mnist
import mlp_diffusion
from benchmarks import __main__ as benchmarks
from benchmarks import attack, main_job, ordinary, shares, training, variants
from imagelab.data.datasets import Dataset, load_dataset, unit
from imagelab.setup import runtime
from imagelab.techniques.classifier import new_classifier
from imagelab.techniques.unet import UNet
from studies import dcgan, unet_diffusion


def test_a_ratio_is_that_of_turns_taken_together(monkeypatch):
    """Ours takes 1, 1, 1 s and the ordinary way 2, 3, 10 s, after a first turn that does not count."""
    seconds = [9, 9, 1, 2, 1, 3, 1, 10]
    clock = itertools.accumulate(itertools.chain.from_iterable((0, s) for s in seconds))
    monkeypatch.setattr(runtime.time, "perf_counter", lambda: next(clock))
    calls = []
    ratio = benchmarks.measure(
        3, "test", "images", 60, lambda: calls.append("a"), lambda: calls.append("b")
    )
    assert calls == ["a", "b"] * 4
    assert (ratio.ratio, ratio.lowest, ratio.highest) == pytest.approx((3, 2, 10))
    assert (ratio.ours, ratio.other) == pytest.approx((60, 20))


def test_both_sides_of_the_attack_do_the_same_work(stripes):
    model = new_classifier(stripes, 0).eval()
    images, labels = unit(stripes.test_images[:40]), stripes.test_labels[:40]
    ordinary = attack.ordinary_pgd(model, images, labels)
    ours = attack.pgd(
        model, images, labels, attack.EPSILON, torch.Generator().manual_seed(0), attack.STEPS
    )
    loss = [torch.nn.functional.cross_entropy(model(x), labels).item() for x in (ordinary, ours)]
    assert (ordinary - images).abs().max() <= attack.EPSILON + 1e-6
    assert loss[0] == pytest.approx(loss[1], rel=0.05)  # from other random starts


def test_one_side_alone_has_a_rate_and_no_ratio(monkeypatch):
    clock = itertools.accumulate(itertools.chain.from_iterable((0, s) for s in (9, 2, 4, 3)))
    monkeypatch.setattr(runtime.time, "perf_counter", lambda: next(clock))
    rate = benchmarks.measure(3, "test", "images", 60, lambda: None, None)
    assert rate.ours == pytest.approx(20) and rate.ratio is None


def small(n: int) -> Dataset:
    return training.part(load_dataset("mnist-5k", Path()), n)


@pytest.mark.parametrize(
    ("train", "n"),
    [
        (lambda d: ordinary.mlp_gan(d, gan_mnist.Config(batch_size=16)), 2 * 8),
        (lambda d: ordinary.conv_gan(d, dcgan.Config(batch_size=16)), 2 * 8),
        (lambda d: ordinary.mlp_ddpm(d, mlp_diffusion.Config(batch_size=16)), 8),
        (lambda d: ordinary.classifier(d, 16, 3e-3), 8),
        (lambda d: attack.ordinary_training(d, 16, 3e-3, steps=2), 8),
        (lambda d: ordinary.unet_ddpm(d, unet_diffusion.Config(batch_size=16, widths=(8, 16))), 8),
        (
            lambda d: ordinary.unet_ddpm(
                d, unet_diffusion.Config(batch_size=16, widths=(8, 16)), group_norm=True
            ),
            8,
        ),
    ],
)
def test_the_ordinary_way_learns_as_well(train, n, monkeypatch):
    """128 images in batches of 16: as many losses as steps, each after a gradient of all weights.

    And in float32, on processors with bfloat16 too.
    """
    monkeypatch.setattr(runtime, "has_fast_bfloat16", lambda _device: True)
    monkeypatch.setattr(torch, "autocast", lambda *_: pytest.fail("not in float32"))
    torch.manual_seed(0)
    steps, step = [], torch.optim.Adam.step

    def watched(self):
        weights = [p for group in self.param_groups for p in group["params"]]
        steps.append(all(p.grad is not None for p in weights))
        steps[-1] &= any(p.grad.abs().sum() > 0 for p in weights)
        return step(self)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    losses = train(small(128))
    assert len(losses) == len(steps) == n and all(0 < loss < 100 for loss in losses)
    assert all(steps)


def test_ours_runs_on_every_network_of_the_comparison(monkeypatch):
    sizes = {"gan": 64, "ddpm": 512, "classifier": 256, "dcgan": 64, "unet": 64}
    monkeypatch.setattr(training, "IMAGES", sizes)
    monkeypatch.setattr(training, "load_dataset", lambda *of: small(1024))
    cases = training.training(torch.device("cpu"), True)
    for size, (_, _, n, ours, _) in zip([*sizes.values(), sizes["unet"]], cases, strict=True):
        assert n == size
        ours()
    for _, _, _, ours, alone in training.limit(torch.device("cpu"), True):
        ours(), alone()


def test_the_ordinary_networks_are_ours(float32):
    """The same layers and the same outcome, whichever way they are written."""
    torch.manual_seed(0)
    data = small(32)
    G, D = dcgan.build(dcgan.Config(), data.shape, torch.device("cpu"))
    z = torch.randn(4, 100)
    with torch.no_grad():
        plain = G.grow(G.dense(z).reshape(-1, *G.start))
        assert torch.allclose(plain, G(z), atol=1e-5)
        assert torch.allclose(D.layers(plain).squeeze(1), D.logits(plain), atol=1e-5)
    ours, theirs = new_classifier(data, 0), ordinary.small_cnn(10)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    with torch.no_grad():
        x = unit(data.images)
        assert torch.allclose(theirs((x - 0.13) / 0.31), ours(x), atol=1e-4)


def test_the_limit_is_the_work_of_a_training_step(float32):
    """Its products, counted by hand: forward, for the weights, and for the inputs where they have a
    gradient, which an image has only when the generator learns from it."""
    from torch.utils.flop_counter import FlopCounterMode

    def flops(name: str, size: int) -> int:
        calls = training.products_of_a_step(name, size, small(1024))
        with FlopCounterMode(display=False) as alone:
            for function, args, kwargs in calls:
                function(*args, **kwargs)
        return alone.get_total_flops()

    G = 100 * 128, 128 * 256, 256 * 784
    D = 784 * 256, 256 * 128, 128 * 1
    learn_d = 2 * (3 * sum(D) - D[0])  # of 64 real and 64 generated images
    learn_g = 3 * sum(G) - G[0] + 2 * sum(D)
    assert flops("MLP GAN", 64) == 2 * 64 * (learn_d + learn_g)
    layers = (784 + 64) * 512, 512 * 256, 256 * 784
    assert flops("MLP DDPM", 512) == 2 * 512 * (3 * sum(layers) - layers[0])
    layers = 28**2 * 9 * 32, 14**2 * 32 * 9 * 64, 64 * 7**2 * 128, 128 * 10
    assert flops("CNN classifier", 256) == 2 * 256 * (3 * sum(layers) - layers[0])


def test_shares_of_the_time_add_up(monkeypatch):
    monkeypatch.setattr(
        training, "IMAGES", {"gan": 128, "ddpm": 512, "classifier": 512, "dcgan": 64, "unet": 64}
    )
    monkeypatch.setattr(shares, "load_dataset", lambda *of: small(512))
    for row in shares.shares():
        parts = {kind: part for kind, part in row.items() if kind != "what"}
        assert sum(parts.values()) == pytest.approx(1) and min(parts.values()) >= 0
        assert parts["products"] > 0.1 and parts["Adam"] > 0
        assert (parts["pooling"] > 0) == (row["what"] == "CNN classifier")


def test_a_phase_within_another_stops_its_clock(monkeypatch):
    clock = iter([0, 1, 4, 9, 11, 15])
    monkeypatch.setattr(main_job.time, "perf_counter", lambda: next(clock))
    phases = main_job.Clock()  # at 0
    phases.enter("training")  # at 1
    drawn = phases.timed(lambda x: x + 1, "figures")  # from 4 to 9
    assert drawn(1) == 2
    phases.leave()  # at 11
    assert phases.seconds == {"training": 3 + 2, "figures": 5}


def test_the_command(tmp_path):
    shown, _ = run_here("benchmarks.__main__", "--quick", "--only", "attack", "sampling",
                        "--output-dir", tmp_path)  # fmt: skip
    assert "PGD on the CNN" in shown and "ratio" in shown
    written = json.loads((tmp_path / "benchmarks" / "results.json").read_text("utf-8"))
    (attacked, trained), drawn = written["attack"]["found"], written["sampling"]["found"]
    assert attacked["what"] == "PGD on the CNN" and attacked["ratio"] > 0
    assert trained["what"].startswith("Training on PGD") and trained["ratio"] > 0
    assert len(drawn) == 7 and all(entry["ratio"] > 0 for entry in drawn[:-1])
    assert written["attack"]["repeats"] == 1 and written["attack"]["quick"]
    assert "--only" in "".join(run_here("benchmarks.__main__", "--only", "nonsense", status=2))


def test_a_part_that_is_measured_again_leaves_the_others(tmp_path):
    path = tmp_path / "benchmarks" / "results.json"
    for name, share in (("shares", 1), ("growth", 2), ("shares", 3)):
        benchmarks.enter(path, name, {"device": "a"}, [{"value": share}])
    written = json.loads(path.read_text("utf-8"))
    assert {name: part["found"][0]["value"] for name, part in written.items()} == {
        "growth": 2, "shares": 3,
    }  # fmt: skip
    path.write_text("cut sho")
    benchmarks.enter(path, "limit", {}, [])
    assert list(json.loads(path.read_text("utf-8"))) == ["limit"]


def test_the_usual_norm_takes_the_place_of_every_other():
    network = ordinary.with_group_norm(UNet(1, widths=(8, 16), attention=(1,)))
    norms = [type(part).__name__ for part in network.modules() if "Norm" in type(part).__name__]
    assert set(norms) == {"GroupNorm"} and len(norms) > 10
    assert network(torch.zeros(2, 1, 28, 28), torch.zeros(2)).shape == (2, 1, 28, 28)


def test_every_variant_of_a_step_trains(monkeypatch):
    monkeypatch.setattr(variants, "SHAPE", (1, 8, 8))
    names = []
    for what, _, amount, other, as_it_is, base in variants.variants(torch.device("cpu"), True):
        other(), as_it_is()
        names.append(what)
        assert (amount == 128) == ("128" in what) and base == 64
    assert len(names) == 11


def test_trainings_are_compared_with_and_without_the_compiler(monkeypatch):
    asked = []
    monkeypatch.setattr(variants, "load_dataset", lambda *of: small(1024))
    for module in (variants.unet_diffusion, variants.mlp_diffusion, variants.gan_mnist):
        monkeypatch.setattr(module, "train", lambda config, *of: asked.append(config.compile))
    for _, _, _, with_it, without in variants.compiled(torch.device("cpu"), True):
        with_it(), without()
    assert asked == [True, False] * 4
