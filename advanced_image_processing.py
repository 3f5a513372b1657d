"""Runs the demos in sequence and writes what came out as a table, `results.json` and `report.html`.

    python advanced_image_processing.py            # the four demos: 3 minutes on two CPU cores
    python advanced_image_processing.py --quick    # every step in forty seconds
    python advanced_image_processing.py --only fgsm gan_mnist
    python advanced_image_processing.py --all      # the studies as well
    python advanced_image_processing.py --list
    python advanced_image_processing.py --dataset mnist --data-dir data
    python advanced_image_processing.py --image photo.jpg    # in the demos that take a picture

Pictures and checkpoints go into fixed folders under --output-dir; open report.html to see them. A
demo that fails does not stop the others. Ctrl-C ends the demo that runs, and the report shows what is
there; `python SCRIPT.py --resume` goes on with a training that was stopped.
"""

from __future__ import annotations

from imagelab.setup.command import command_line, heard

import datetime
import importlib
import shlex
import sys
import time
import traceback
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch

from imagelab.data.datasets import load_dataset
from imagelab.data.pictures import open_picture
from imagelab.report.numbers import metric_text, text_table
from imagelab.report.page import write_report
from imagelab.report.results import write_json
from imagelab.setup.files import give_back
from imagelab.setup.runtime import UserError, explain, machine, prepare
from imagelab.setup.settings import DataSettings, InputFile, option
from imagelab.setup.terminal import duration, wrapped

Name = Literal[
    "fgsm", "diffusion_demo", "gan_mnist", "mlp_diffusion",
    "adversarial_training", "vae", "dcgan", "model_comparison",
    "denoising_autoencoder", "denoising_gan", "cnn_classifier", "segmentation", "detection",
    "image_translation",
    "unet_diffusion", "diffusion_curves", "inpainting", "diffusion_restoration", "text_diffusion",
]  # fmt: skip


@dataclass(frozen=True)
class Demo:
    """A script with the settings that the driver adds, and what it costs on two CPU cores."""

    folder: str
    seconds: int
    quick_seconds: int
    headline: str
    """The metric that the table shows, by how its name begins."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Settings of the demo that replace the driver's, such as data of another kind than --dataset."""


DEMOS: dict[str, Demo] = {
    "fgsm": Demo("adversarial_images", 20, 10, "accuracy, FGSM, ε = 0.3"),
    "diffusion_demo": Demo(
        "diffusion_images", 4, 5, "last step: PSNR after the blur", {"compare": True}
    ),
    "gan_mnist": Demo("fake_images", 80, 8, "Fréchet distance", {"compare": True}),
    "mlp_diffusion": Demo("diffusion_samples", 75, 15, "Fréchet distance", {"compare": True}),
}


STUDIES: dict[str, Demo] = {
    "adversarial_training": Demo("study_images/adversarial_training", 185, 25, "PGD: PGD-40"),
    "vae": Demo("study_images/vae", 40, 15, "Fréchet distance"),
    "dcgan": Demo("study_images/dcgan", 180, 20, "Fréchet distance"),
    "model_comparison": Demo("study_images/model_comparison", 640, 45, "DCGAN: Fréchet distance"),
    "denoising_autoencoder": Demo(
        "study_images/denoising_autoencoder", 185, 20, "autoencoder: PSNR"
    ),
    "denoising_gan": Demo("study_images/denoising_gan", 200, 30, "GAN: PSNR"),
    "cnn_classifier": Demo("study_images/cnn_classifier", 25, 10, "accuracy"),
    "segmentation": Demo("study_images/segmentation", 360, 15, "mean IoU", {"dataset": "scenes"}),
    "detection": Demo("study_images/detection", 180, 15, "mAP at 0.5", {"dataset": "scenes"}),
    "image_translation": Demo(
        "study_images/image_translation", 240, 25, "streets, Pix2Pix: mean IoU"
    ),
    "unet_diffusion": Demo("study_images/unet_diffusion", 920, 20, "read as the class asked for"),
    "diffusion_curves": Demo("study_images/diffusion_curves", 2100, 20, "dpm-solver in"),
    "inpainting": Demo("study_images/inpainting", 600, 10, "half: class kept by diffusion"),
    "diffusion_restoration": Demo(
        "study_images/diffusion_restoration", 270, 15, "super-resolution: PSNR less bicubic's"
    ),
    "text_diffusion": Demo("study_images/text_diffusion", 750, 20, "never seen together: all four"),
}
EVERYTHING = DEMOS | STUDIES


def call_of(name: str) -> list[str]:
    """What follows `python` where a script is run from the root: its file, or a study's module."""
    return ["-m", f"studies.{name}"] if name in STUDIES else [f"{name}.py"]


def module_of(name: str) -> ModuleType:
    """The script of a demo or a study, imported."""
    return importlib.import_module(f"studies.{name}" if name in STUDIES else name)


@dataclass(frozen=True)
class Config(DataSettings):
    """Settings of the main job; --quick, --seed, --device and --output-dir reach every demo."""

    only: tuple[Name, ...] = ()
    """Run these demos or studies only; --list names them."""
    skip: tuple[Name, ...] = ()
    """Leave these out."""
    all: bool = False
    """Run the studies as well: just under two hours more on two CPU cores."""
    image: InputFile | None = None
    """Your own picture, for fgsm and diffusion_demo. Both add noise to it; fgsm also attacks it as a
    digit."""
    list: bool = False
    """List demos and studies with their times, and do nothing."""


@dataclass
class JobSummary:
    """What the driver returns: the table's rows and the exit status."""

    rows: list[dict[str, Any]]
    exit_status: int
    report: Path | None = None
    stop: KeyboardInterrupt | None = None
    shown: list[Path] = field(default_factory=list)

    def print_summary(self) -> None:
        if self.rows:
            print("\n" + status_table(self.rows))
        if self.report is not None:
            print(f"\nOpen {self.report}")
        if self.stop is not None:
            raise self.stop

    def pictures(self) -> list[Path]:
        return self.shown


def chosen(config: Config) -> list[str]:
    wanted = config.only or (EVERYTHING if config.all else DEMOS)
    names = [name for name in EVERYTHING if name in wanted and name not in config.skip]
    if not names:
        raise UserError("--only and --skip leave no demo to run.")
    return names


def takes(name: str, setting: str) -> bool:
    """Whether this setting of ours reaches the demo: it has one of that name, without a fixed value."""
    taken = setting in module_of(name).Config.__dataclass_fields__
    return taken and setting not in EVERYTHING[name].extra


def with_command(stop: KeyboardInterrupt, name: str, config: Config) -> KeyboardInterrupt:
    """The demo's interruption, with the command by which its own script goes on."""
    if "--resume" in str(stop):
        own = demo_config(module_of(name), config, EVERYTHING[name])
        words = ["python", *call_of(name)]
        for part in fields(own):
            value = getattr(own, part.name)
            if value is True:
                words.append(option(part.name))
            elif value != part.default:
                words += [option(part.name), str(value)]
        stop.args = (f"{stop} To go on: {shlex.join([*words, '--resume'])}",)
    return stop


def demo_config(module, config: Config, demo: Demo):
    """The demo's own Config with what the driver passes on."""
    fields = module.Config.__dataclass_fields__
    shared = ("output_dir", "seed", "device", "quick", "dataset", "data_dir", "image", "debug")
    passed = {name: getattr(config, name) for name in shared if name in fields}
    return module.Config(**{**passed, **demo.extra})


def run(config: Config) -> JobSummary:
    """Run the chosen demos one after the other; write the report whatever happened."""
    names = chosen(replace(config, all=True) if config.list else config)
    costs = {
        name: demo.quick_seconds if config.quick else demo.seconds
        for name, demo in EVERYTHING.items()
    }
    if config.list:
        rows = [[name, costs[name], EVERYTHING[name].folder] for name in names]
        print(text_table(["demo", "seconds", "pictures"], rows))
        return JobSummary([], 0)
    device = prepare(config.seed, config.device)
    dataset = config.dataset
    if config.image is not None:  # what is wrong with it is wrong for all
        if not any(takes(name, "image") for name in names):
            raise UserError(
                f"--image: {', '.join(names)} take no picture; fgsm and diffusion_demo do."
            )
        open_picture(config.image)
    if any(takes(name, "dataset") for name in names):
        dataset = load_dataset(config.dataset, config.data_dir).name
    config.output_dir.mkdir(parents=True, exist_ok=True)
    whole = duration(sum(costs[name] for name in names))
    print(
        wrapped(
            f"Running {', '.join(names)} on {machine(device)}: about {whole} on two CPU "
            f"cores. Pictures and report.html go to {config.output_dir.resolve()}."
        )
    )
    rows, stop, shown = [], None, []
    for i, name in enumerate(names, start=1):
        own, left = time_left(costs, names, rows)
        print(f"\n[{i}/{len(names)}] {name}: about {own}; the whole job: about {left} left.")
        row = {
            "name": name,
            "folder": EVERYTHING[name].folder,
            "status": "done",
            "error": "",
            "seconds": 0.0,
            "figure": "",
            "n": None,
        }
        rows.append(row)
        started = time.perf_counter()
        try:
            demo = EVERYTHING[name]
            module = module_of(name)
            result = module.run(demo_config(module, config, demo))
            row |= headline(demo, result.metrics)
            shown += result.pictures()
        except KeyboardInterrupt as interruption:
            heard()
            stop = with_command(interruption, name, config)
            row |= {"status": "stopped", "error": str(stop)}
        except Exception as error:
            if config.debug:
                traceback.print_exc()
            row |= {"status": "failed", "error": explain(error)[0]}
            print(f"{name}: {row['error']}", file=sys.stderr)
        finally:
            give_back()
        row["seconds"] = time.perf_counter() - started
        if stop is not None:
            break
    failed = any(row["status"] == "failed" for row in rows)
    report = config.output_dir / "report.html"
    if report.exists() and not any(row["status"] == "done" for row in rows):
        return JobSummary(rows, 1 if failed else 0, None, stop, shown)  # the last one says more
    facts = {
        "date": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "seed": config.seed,
        "dataset": dataset,
        "quick": config.quick,
        "device": machine(device),
        "torch": torch.__version__,
    }
    print("\nWriting the report.")
    write_report(report, config.output_dir, rows, facts)
    write_json(config.output_dir / "results.json", {**facts, "demos": rows})
    return JobSummary(rows, 1 if failed else 0, report, stop, shown)


def time_left(
    costs: dict[str, int], names: list[str], rows: list[dict[str, Any]]
) -> tuple[str, str]:
    """How long the next demo will take, and all that are left, at the pace of those that are done."""
    done = [row for row in rows if row["status"] == "done"]
    expected = sum(costs[row["name"]] for row in done)
    pace = sum(row["seconds"] for row in done) / expected if expected else 1.0
    left = names[len(rows) :]
    return duration(pace * costs[left[0]]), duration(pace * sum(costs[name] for name in left))


def headline(demo: Demo, metrics: dict) -> dict[str, Any]:
    """The demo's one metric for the tables, as text with its name, and its sample size."""
    found = [name for name in metrics if name.startswith(demo.headline)]
    if not found:
        return {}
    name = min(found, key=len)
    return {"figure": f"{name}: {metric_text(vars(metrics[name]))}", "n": metrics[name].n}


def status_table(rows: list[dict[str, Any]]) -> str:
    cells = [[r["name"], r["status"], round(r["seconds"]), r["figure"] or r["error"]] for r in rows]
    return text_table(["demo", "status", "seconds", "metric"], cells)


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
