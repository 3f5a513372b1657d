from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
import torch
from conftest import ROOT, complaint, run_here
from filelock import FileLock
from PIL import Image

import advanced_image_processing as driver
from imagelab.report.numbers import Metric

SCRIPTS = ["advanced_image_processing", "fgsm", "diffusion_demo", "gan_mnist", "mlp_diffusion"]


def test_the_main_job(main_job):
    folders = {
        "adversarial_images", "classifier_models", "diffusion_images", "fake_images", "GAN_models",
        "diffusion_samples", "diffusion_models",
    }  # fmt: skip
    assert folders <= {p.name for p in main_job.iterdir() if p.is_dir()}
    job = json.loads((main_job / "results.json").read_text("utf-8"))
    assert [row["name"] for row in job["demos"]] == list(driver.DEMOS)
    assert {row["status"] for row in job["demos"]} == {"done"}
    assert all(row["figure"] for row in job["demos"])


def test_the_report_is_one_self_contained_file(main_job):
    page = (main_job / "report.html").read_text("utf-8")
    assert len(page.encode()) < 9_000_000
    assert "<script src" not in page and not re.search(r'(?:src|href)="(?!data:|#)', page)
    pictures = re.findall(r"<img [^>]*>", page)
    assert len(pictures) >= 15 and all('alt="' in picture for picture in pictures)
    assert "not embedded" not in page
    for name in driver.DEMOS:  # in each demo's part: its seed, its figures with their n, no lesson
        part = page[page.index(f'<section id="{name.replace("_", "-")}">') :].split("</section>")[0]
        assert "seed 0" in part and "<h3>What we learned</h3>" not in part
        assert re.search(r'<td class="num">[\d,]+</td></tr>', part)
        assert ('scope="col">floor<' in part) == (name in ("gan_mnist", "mlp_diffusion"))
    models = page[page.index('<h2 id="models">') : page.index('<h2 id="status">')]
    assert models.count("<tr>") == 1 + 2 and models.count(">floor ") >= 4


def test_a_failing_demo_does_not_stop_the_others(tmp_path):
    models = tmp_path / "classifier_models"
    models.mkdir()
    (models / "mnist-5k_cnn_quick.pth").write_bytes(b"damaged")
    demos = ("--only", "fgsm", "diffusion_demo")
    shown, _ = run_here("advanced_image_processing", "--quick", "--dataset", "mnist-5k", *demos,
                        "--output-dir", tmp_path, status=1)  # fmt: skip
    table = shown[shown.index("demo ") :]
    assert re.search(r"fgsm +failed .*mnist-5k_cnn_quick\.pth", table)
    assert re.search(r"diffusion_demo +done", table)
    assert "mnist-5k_cnn_quick.pth" in (tmp_path / "report.html").read_text("utf-8")
    assert (models / "mnist-5k_cnn_quick.pth").read_bytes() == b"damaged"


def test_a_wrong_data_set_is_refused_before_the_first_demo(tmp_path):
    (tmp_path / "report.html").write_text("of the last good run")
    shared = ("--quick", "--output-dir", tmp_path)
    assert "Unknown --dataset 'mnits'" in complaint(SCRIPTS[0], *shared, "--dataset", "mnits")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_an_image_reaches_the_demos_that_take_one(tmp_path, monkeypatch):
    import diffusion_demo
    import fgsm
    import gan_mnist

    seen = {}

    def look(name):
        def run(config):
            seen[name] = getattr(config, "image", "no such setting")
            raise ValueError("enough")

        monkeypatch.setattr(importlib.import_module(name), "run", run)

    for module in (fgsm, diffusion_demo, gan_mnist):
        look(module.__name__)
    picture = tmp_path / "mine.png"
    Image.effect_noise((40, 30), 60).save(picture)
    demos = ("--only", "fgsm", "diffusion_demo", "gan_mnist")
    shared = ("--quick", "--dataset", "mnist-5k", "--output-dir", tmp_path / "out")
    run_here(SCRIPTS[0], *demos, *shared, "--image", picture, status=1)
    assert seen == {"fgsm": picture, "diffusion_demo": picture, "gan_mnist": "no such setting"}
    run_here(SCRIPTS[0], *demos, *shared, status=1)
    assert seen["fgsm"] is None


def test_the_own_picture_is_noisy_in_the_main_job(tmp_path):
    Image.effect_noise((120, 90), 60).save(tmp_path / "mine.png")
    run_here(SCRIPTS[0], "--quick", "--only", "diffusion_demo", "--output-dir", tmp_path,
             "--image", tmp_path / "mine.png")  # fmt: skip
    assert Image.open(tmp_path / "diffusion_images/step_1.png").size == (120, 90)


def test_a_wrong_image_is_refused_before_the_first_demo(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    out = tmp_path / "out"
    shared = ("--quick", "--dataset", "mnist-5k", "--output-dir", out, "--image")
    assert "there is no file" in complaint(SCRIPTS[0], *shared, tmp_path / "none.png")
    assert "not a picture" in complaint(SCRIPTS[0], *shared, tmp_path / "text.png")
    Image.new("L", (40, 30)).save(tmp_path / "fine.png")
    only = ("--only", "gan_mnist", "mlp_diffusion")
    assert "take no picture; fgsm and diffusion_demo do" in complaint(
        SCRIPTS[0], *shared, tmp_path / "fine.png", *only
    )
    assert not out.exists()


def test_where_no_demo_is_done_the_report_before_stays(tmp_path, monkeypatch):
    import fgsm
    from imagelab.setup.runtime import UserError

    def refused(config):
        raise UserError("No.")

    monkeypatch.setattr(fgsm, "run", refused)
    config = driver.Config(quick=True, output_dir=tmp_path, dataset="mnist-5k", only=("fgsm",))
    assert driver.run(config).exit_status == 1 and (tmp_path / "report.html").exists()
    (tmp_path / "report.html").write_text("of the last good run")
    assert driver.run(config).exit_status == 1
    assert (tmp_path / "report.html").read_text() == "of the last good run"


def test_list_and_choice(tmp_path):
    shown, _ = run_here("advanced_image_processing", "--list", "--output-dir", tmp_path)
    assert all(name in shown for name in driver.EVERYTHING)
    assert not list(tmp_path.iterdir())
    assert "leave no demo" in complaint(
        "advanced_image_processing", "--only", "fgsm", "--skip", "fgsm"
    )
    assert driver.chosen(driver.Config(skip=("fgsm", "gan_mnist"))) == [
        "diffusion_demo",
        "mlp_diffusion",
    ]


def test_the_time_that_is_left_follows_the_pace():
    costs, names = {"fgsm": 20, "diffusion_demo": 4, "gan_mnist": 75}, ["fgsm", "gan_mnist"]
    assert driver.time_left(costs, names, []) == ("20 s", "1 min 35 s")
    slow = {"name": "fgsm", "status": "done", "seconds": 60.0}
    assert driver.time_left(costs, names, [slow]) == ("3 min 45 s", "3 min 45 s")
    failed = {"name": "fgsm", "status": "failed", "seconds": 0.1}  # says nothing of the pace
    assert driver.time_left(costs, names, [failed]) == ("1 min 15 s", "1 min 15 s")


def test_the_table_shows_each_demo_s_metric_or_what_failed():
    rows = [
        {"name": "fgsm", "status": "done", "seconds": 3.4, "figure": "accuracy: 0.5", "error": ""},
        {
            "name": "gan_mnist",
            "status": "failed",
            "seconds": 0.2,
            "figure": "",
            "error": "No disk.",
        },
    ]
    first, *others = driver.status_table(rows).splitlines()
    assert first.split() == ["demo", "status", "seconds", "metric"]
    assert others[-2].endswith("accuracy: 0.5") and others[-1].endswith("No disk.")


def test_the_driver_names_the_data_and_the_time_left_once(tmp_path, monkeypatch):
    from imagelab.data.datasets import load_for

    def demo(name):
        def run(config):
            load_for(config, torch.device("cpu"))  # as every demo does
            raise ValueError("enough")

        monkeypatch.setattr(importlib.import_module(name), "run", run)

    for name in ("fgsm", "gan_mnist"):
        demo(name)
    shown, _ = run_here("advanced_image_processing", "--quick", "--only", "fgsm", "gan_mnist",
                        "--data-dir", tmp_path / "no", "--output-dir", tmp_path, status=1)  # fmt: skip
    assert shown.count("Data: ") == 1
    assert "[1/2] fgsm: about 10 s; the whole job: about 18 s left." in shown
    assert "[2/2] gan_mnist: about 8 s; the whole job: about 8 s left." in shown


def test_studies_run_when_they_are_asked_for():
    assert driver.chosen(driver.Config()) == list(driver.DEMOS)
    assert driver.chosen(driver.Config(all=True)) == list(driver.EVERYTHING)
    assert driver.chosen(driver.Config(all=True, skip=("vae",))).count("vae") == 0
    assert driver.chosen(driver.Config(only=("vae",))) == ["vae"]


def test_a_study_is_reported_like_a_demo(tmp_path, monkeypatch):
    """With a stand-in for the study's work: what it writes is found in its own folder."""
    from imagelab.data.pictures import write_png
    from imagelab.report.results import start_result
    from studies import vae

    def short(config):
        result = start_result("vae", "A short VAE", "", config, vae.PICTURES, torch.device("cpu"))
        result.add_metric("Fréchet distance", 12.5, 300)
        write_png(result.add_file("drawn.png", "What it shows."), np.zeros((9, 9), np.uint8))
        return result.save()

    monkeypatch.setattr(vae, "run", short)
    outcome = driver.run(driver.Config(only=("vae",), output_dir=tmp_path))
    assert outcome.exit_status == 0 and "12.5" in outcome.rows[0]["figure"]
    assert outcome.pictures() == [tmp_path / vae.PICTURES / "drawn.png"]  # what --show opens
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "A short VAE" in page and "12.5" in page
    with FileLock(tmp_path / vae.PICTURES / ".lock", timeout=0):
        pass  # the driver is done with the folder: another run may have it


@pytest.mark.parametrize("name", driver.STUDIES)
def test_every_study_writes_where_the_driver_looks(name):
    module = importlib.import_module(f"studies.{name}")
    assert driver.STUDIES[name].folder == module.PICTURES
    config = driver.demo_config(module, driver.Config(seed=3, quick=True), driver.STUDIES[name])
    assert config.seed == 3 and config.quick


def test_ctrl_c_writes_the_report_of_what_is_there(tmp_path, monkeypatch):
    import diffusion_demo
    import fgsm

    def stopped(config):
        raise KeyboardInterrupt("stopped after 3 of 9 steps and saved in a.pth; --resume goes on.")

    monkeypatch.setattr(fgsm, "run", stopped)
    monkeypatch.setattr(diffusion_demo, "run", lambda config: pytest.fail("must not start"))
    outcome = driver.run(driver.Config(quick=True, output_dir=tmp_path, dataset="mnist-5k"))
    with pytest.raises(KeyboardInterrupt) as stop:  # which the command line makes exit status 130
        outcome.print_summary()
    command = str(stop.value).split("To go on: ")[1]
    shown = f"python fgsm.py --output-dir '?{tmp_path}'? --quick --dataset mnist-5k --resume"
    assert sorted(re.findall(r"[^' ]+", command)) == sorted(re.findall(r"[^'? ]+", shown))
    assert "stopped" in (tmp_path / "report.html").read_text("utf-8")


def test_importing_a_script_is_light(tmp_path):
    """What costs start-up time is imported where it is used; nothing runs and nothing is written."""
    heavy = ["torchvision", "matplotlib", "sklearn", "skimage", "cv2", "torchmetrics", "tyro"]
    scripts = [*SCRIPTS, *(f"studies.{name}" for name in driver.STUDIES)]
    code = f"import sys, {', '.join(scripts)}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.strip() == "[]" and done.stderr == ""
    assert not list(tmp_path.iterdir())


def test_a_study_runs_as_a_file_too(tmp_path):
    """As an editor's run button starts it, from any folder, with nothing on the path."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["PYTHONIOENCODING"] = "utf-8"
    done = subprocess.run([sys.executable, str(ROOT / "studies" / "inpainting.py"), "--help"],
                          cwd=tmp_path, env=environment, capture_output=True, text=True,
                          encoding="utf-8")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "usage: inpainting.py" in done.stdout and "--repaint-steps" in done.stdout


@pytest.mark.parametrize("script", [*SCRIPTS, "studies.model_comparison"])
def test_help_names_every_setting(script):
    shown, _ = run_here(script, "--help")
    module = importlib.import_module(script)
    for name in module.Config.__dataclass_fields__:
        assert "--" + name.replace("_", "-") in shown
    run_here(script, "--sede", 1, status=2)


def test_every_row_can_be_chosen_and_has_a_headline():
    assert get_args(driver.Name) == tuple(driver.EVERYTHING)
    metrics = {"PGD: PGD-40, ε = 0.3": Metric(0.9, 1000), "PGD: clean": Metric(0.99, 1000)}
    found = driver.headline(driver.EVERYTHING["adversarial_training"], metrics)
    assert found["figure"].startswith("PGD: PGD-40, ε = 0.3: 0.9") and found["n"] == 1000
    assert driver.headline(driver.EVERYTHING["vae"], metrics) == {}
