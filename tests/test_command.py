from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, complaint, run_here

import fgsm
import gan_mnist
from studies import cnn_classifier

DRIVER = "advanced_image_processing"


def options(script: str, *command: str) -> list[str]:
    shown, _ = run_here(script, *command, "--help")
    return re.findall(r"^│ (--[a-z0-9-]+)", shown, flags=re.M)


def test_a_script_s_own_options_come_first_and_those_of_all_last():
    shown = options("gan_mnist")
    assert shown[:2] == ["--compare", "--compare-epochs"]  # its own
    assert shown.index("--max-shift") < shown.index("--num-samples") < shown.index("--resume")
    assert shown[-6:] == ["--show", "--output-dir", "--seed", "--quick", "--device", "--debug"]
    assert len(shown) == len(set(shown)) == len(gan_mnist.Config.__dataclass_fields__)
    assert options("studies.inpainting", "inpaint")[-2:] == ["--device", "--debug"]


def test_help_is_written_for_people(monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    shown, _ = run_here("gan_mnist", "--help")
    assert "{None}" not in shown and "(default: None)" not in shown
    assert "--time-limit FLOAT " in shown and "(default: 17)" not in shown.split("usage:")[0]
    head = shown[: shown.index("usage:")]
    assert head.startswith("A generative adversarial network")
    prose = [line for line in head.splitlines() if not line.startswith("    ")]
    assert max(map(len, prose)) <= 70
    assert "(default: 0)" in shown[shown.index("--seed") : shown.index("--quick")]
    monkeypatch.setenv("COLUMNS", "200")
    shown, _ = run_here("studies.diffusion_curves", "--help")
    assert (
        "with the same number of threads" in shown
    )  # the docstring breaks its line there; a wide terminal does not
    assert "--short-t {None}|INT" in shown  # where None is something to ask for
    shown, _ = run_here(DRIVER, "--help")
    assert "--only NAME [NAME ...]" in shown and "unet_diffusion" not in shown


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--only", "gan"], "Unknown --only 'gan'. Perhaps you meant gan_mnist or dcgan or "
                            "denoising_gan?"),
        (["--only", "gan_mnsit"], "Unknown --only 'gan_mnsit'. Perhaps you meant gan_mnist?"),
        (["--only", "fgsm", "gan_mnsit"], "Perhaps you meant gan_mnist?"),
        (["--only=gan_mnsit"], "Perhaps you meant gan_mnist?"),
        (["--skip", "zebra"], "Unknown --skip 'zebra'. Choose one of fgsm, diffusion_demo"),
        (["--dataset", "minst"], "Unknown --dataset 'minst'. Perhaps you meant mnist or mnist-5k?"),
        (["--dataset", "zebra"], "Choose one of auto, mnist-5k, textures, faces, mnist, fashion-mnist, "
                                 "cifar10, celeba, folder:PATH."),
    ],
)  # fmt: skip
def test_what_may_have_been_meant(arguments, sentence):
    assert sentence in complaint(DRIVER, *arguments)


def test_mistyped_options_and_commands():
    _, complained = run_here("gan_mnist", "--ouput-dir", "x", status=2)
    assert "Perhaps you meant" in complained and "--output-dir PATH" in complained
    said = complaint("studies.detection", "pedict", "--source", "a.jpg")
    assert "Unknown command 'pedict'. Perhaps you meant predict?" in said
    said = complaint("studies.unet_diffusion", "--sampler", "dpm")
    assert "Perhaps you meant ddpm or dpm-solver?" in said or "dpm-solver" in said


@pytest.mark.parametrize(
    ("module", "arguments", "sentence"),
    [
        (fgsm, ["--image", "no.jpg"], "--image: there is no file no.jpg."),
        (
            fgsm,
            ["--weights", "no.pth", "--victim", "resnet18"],
            "--weights: there is no file no.pth.",
        ),
        (fgsm, ["--targeted", -1], "--targeted must be at least 0, not -1."),
        (fgsm, ["--epsilon", 1], "fgsm.py --help"),
        (fgsm, ["--output-dir", __file__], "test_command.py is not a folder."),
        (cnn_classifier, ["--weights", "no.pth"], "--weights: there is no file no.pth."),
        (gan_mnist, ["--epochs", 0], "--epochs must be at least 1, not 0."),
        (gan_mnist, ["--epochs", "many"], "gan_mnist.py --help"),
        (gan_mnist, ["--dataset", "folder:no/pictures"], "there is no such folder."),
        (gan_mnist, ["--samples-file", f"{__file__}/a.npz"], "test_command.py is not a folder."),
    ],
)
def test_a_wrong_path_or_number_is_refused_before_data_are_read(
    module, arguments, sentence, monkeypatch
):
    monkeypatch.setattr(module, "load_for", lambda *_: pytest.fail("the data were read"))
    _, complained = run_here(module.__name__, *arguments, status=2)
    assert sentence in complained


@pytest.mark.parametrize("package", ["torch", "tyro", "skimage"])
def test_a_missing_package_is_named_with_the_command_that_brings_it(package):
    code = (
        f"import runpy, sys; sys.modules['{package}'] = None; sys.argv = ['fgsm.py', '--quick'];"
        "runpy.run_path('fgsm.py', run_name='__main__')"
    )
    # As in `python fgsm.py`, the script is what __main__'s file is.
    code = f"import sys; sys.modules['__main__'].__file__ = 'fgsm.py'; {code}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert f"has no package {package}." in done.stderr and "requirements.txt" in done.stderr
    assert done.stderr.count("\n") == 1
