"""`report.html`: one self-contained page made from the `results.json` files of the demos."""

from __future__ import annotations

import collections
import functools
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imagelab.data.pictures import data_url, webp
from imagelab.report import playground
from imagelab.report.numbers import metric_text, number
from imagelab.setup.files import atomic_path

if TYPE_CHECKING:
    from imagelab.report.results import Result

TEMPLATE = Path(__file__).with_name("page.html.jinja")
# Of pictures and playground, as base64, for every four demos: so the page of the main job, of which the
# networks of the playground take half, can still be sent by mail (10 MB).
MAX_BYTES = 9_600_000
FRAMES = 14  # of an animation in the page at most; its file has them all
THUMBNAIL = (480, 270)  # pixels of a card's picture
# The picture of a demo's card, where it is not the first one.
BEST = {
    "fgsm": "gallery.png", "adversarial_training": "gradients.png", "vae": "plane.png",
    "detection": "detections.png", "segmentation": "overlays.png", "cnn_classifier": "mistakes.png",
    "image_translation": "streets.png", "model_comparison": "samples.png",
}  # fmt: skip
# The number of a demo's card in plain words; {value}, {floor} and other metrics by name are filled in.
DISTANCE = (
    "Samples and real pictures are a Fréchet distance of {value} apart, two sets of real pictures "
    "{floor}."
)
WORDS = {
    "fgsm": "After one gradient step of ε = 0.3, {value} are still read rightly.",
    "diffusion_demo": "A blur brings the noisiest picture from a PSNR of {last step: PSNR} to {value}.",
    "gan_mnist": DISTANCE,
    "mlp_diffusion": DISTANCE,
    "dcgan": DISTANCE,
    "vae": DISTANCE,
    "model_comparison": "The best known of the models, DCGAN, ends at a distance of {value}.",
    "adversarial_training": "Trained on attacks, a network still reads {value} rightly after forty "
    "steps of one.",
    "denoising_autoencoder": "An autoencoder brings noisy pictures to {value}.",
    "denoising_gan": "A GAN brings noisy pictures to {value}.",
    "cnn_classifier": "It reads {value} of the held-out pictures rightly.",
    "segmentation": "What it marks and what is there overlap by {value}.",
    "detection": "Its boxes reach a mean average precision of {value}.",
    "image_translation": "In streets that it paints from masks, a segmentation network finds the masks "
    "again with a mean IoU of {value}.",
    "unet_diffusion": "{value} of its pictures are read as the class that was asked for.",
    "inpainting": "With a half drawn anew, {value} keep their class, which a classifier named.",
    "diffusion_restoration": "Four times as large, its pictures gain {value} over bicubic.",
    "text_diffusion": "{value} of the pictures hold all that a prompt of unseen words asked for.",
}
# Figures between 0 and 1 that are shares of something, by their names; those of tables by their columns.
SHARES = re.compile(
    r"^(?!.* less ).*(accuracy|coverage|rarest class|surely read|: clean$|FGSM|PGD-|random sign|same L2"
    r"|Gaussian noise|read (as|right)|class (kept|found|read)|share|left out|all four|never seen"
    r"|weight of the image)",
    re.IGNORECASE,
)
SHARES_ALL = re.compile(r"^(accuracy|how often)", re.IGNORECASE)  # tables of nothing but shares
NO_SHARES = ("ε", "seconds", "seed", "restarts", "epochs")
# What the words of the numbers mean, for the page on which they occur.
GLOSSARY = {
    "FGSM": "fast gradient sign method: one step of ε in every pixel, along the sign of the gradient of "
    "the network's loss.",
    "PGD": "projected gradient descent: many smaller steps of that kind, never more than ε away from "
    "the picture.",
    "PSNR": "peak signal-to-noise ratio, in decibels (dB): how near a picture is to the clean one. "
    "3 dB more is half the squared error.",
    "SSIM": "structural similarity: how alike two pictures are in brightness, contrast and structure; 1 "
    "for the same picture.",
    "MLP": "multi-layer perceptron: a network of dense layers only.",
    "GAN": "generative adversarial network: one network draws, another learns to tell its pictures from "
    "real ones.",
    "IoU": "intersection over union: how much two areas overlap; 1 where they are the same.",
    "Fréchet distance": "how far apart samples and real pictures are, in mean and spread of what a "
    "classifier sees in them. Its scale depends on that classifier: compare with the floor.",
    "kernel distance": "the same question, without taking both for normal distributions. Where there is "
    "no distance its estimate scatters around 0, so it may be negative.",
    "density": "how close the samples lie to where real pictures are dense: about 1 for real pictures.",
    "coverage": "the share of real pictures that have a sample nearby: low where samples lack variety.",
    "rarest class": "the share of the samples in the class that the classifier reads most seldom.",
    "surely read": "the share that the classifier reads with a confidence of 99 % or more. It answers to "
    "noise as well, so this alone says nothing: compare with real pictures.",
    "speckle": "what a median of 3×3 pixels takes away, in grey levels of 255: specks, and thin strokes.",
    "floor": "the same number for real held-out pictures: what a perfect model would reach.",
    "memoriser": "the same number for real training pictures: what a model reaches that copies them.",
}  # fmt: skip


def write_report(path: Path, root: Path, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Write the page. `rows` are the driver's table: name, status, seconds, error, folder, figure, n.

    A demo without results is shown with its error only. Pictures are embedded, large ones as WebP;
    those that no longer fit into the limit are named with their path.
    """
    demos = [_demo(root, row) for row in rows]
    done = {demo["name"]: (demo["source"], demo["result"]) for demo in demos if demo["result"]}
    play = playground.collect(root, done)
    room = int(MAX_BYTES * max(len(rows) / 4, 1))
    if play:  # of its networks the U-Net comes on top: the page may grow for it
        room -= play.size() - len(play.networks.get("unet", ""))
    finished = [demo for demo in demos if demo["result"]]
    for demo in finished:
        demo["card"] = card(demo)
    _embed_all([(demo["result"]["files"], demo["source"]) for demo in finished], room)
    results = [demo["result"] for demo in finished]
    sources = collections.Counter(one["dataset"]["source"] for one in results if one["dataset"])
    page = _template().render(
        demos=demos,
        facts=facts,
        common={facts["device"], *(source for source, count in sources.items() if count > 1)},
        sources=[source for source, count in sources.items() if count > 1],
        glossary=glossary(results),
        models=model_rows(demos),
        play=play,
        plays={panel.demo: panel.name for panel in play.panels} if play else {},
        script=_text(playground.SCRIPT),
        style=_text(playground.STYLE),
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


NOTEBOOK_STYLE = """
.imagelab img { max-width: 100%; height: auto; background: #fff; }
.imagelab img.pixelated { image-rendering: pixelated; }
.imagelab figure { margin: 0 0 1rem; }
.imagelab td, .imagelab th { padding: .2rem .9rem .2rem 0; text-align: left; }
.imagelab .scroll { overflow-x: auto; }
.imagelab .unit { white-space: nowrap; }
.imagelab .soft, .imagelab figcaption { opacity: .75; }
"""


def notebook_html(result: Result) -> str:
    """The part of the page on one result, with its pictures in it, as a notebook shows it."""
    record = result.record()
    _embed_all([(record["files"], result.folder)], MAX_BYTES)
    template = _template()
    demo = {"name": result.script}
    context = template.new_context({"demo": demo, "result": record, "plays": {}, "common": ()})
    part = "".join(template.blocks["result"](context))
    return f'<style>{NOTEBOOK_STYLE}</style><div class="imagelab">{part}</div>'


def _template():
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        number=number, cell=cell, short=short, lines=lines, headline=headline, tidy=tidy,
        measures=measures,
    )  # fmt: skip
    return environment.get_template(TEMPLATE.name)


def _demo(root: Path, row: dict[str, Any]) -> dict[str, Any]:
    """The driver's row with the demo's record, where there is one, and the folder that it lies in."""
    demo = {
        **row,
        "anchor": row["name"].replace("_", "-"),
        "result": None,
        "card": None,
        "source": root / (row["folder"] or ""),
    }
    record = demo["source"] / "results.json"
    if row["folder"] and row["status"] == "done" and record.is_file():
        demo["result"] = json.loads(record.read_text(encoding="utf-8"))
    return demo


@functools.cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


MODEL_COLUMNS = ("Fréchet distance", "coverage", "rarest class", "milliseconds per sample")


def model_rows(demos: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every demo that draws samples: its anchor and title, and its figures of MODEL_COLUMNS.

    Only demos of one and the same evaluator are put together: other distances are not comparable.
    """
    scored = [demo for demo in demos if demo["result"] and demo["result"]["evaluator"]]
    scored = [demo for demo in scored if MODEL_COLUMNS[0] in demo["result"]["metrics"]]
    return [
        {
            "anchor": demo["anchor"],
            "title": demo["result"]["title"].split(":")[0],
            "evaluator": demo["result"]["evaluator"],
            "n": demo["result"]["metrics"][MODEL_COLUMNS[0]]["n"],
            "figures": {name: demo["result"]["metrics"].get(name) for name in MODEL_COLUMNS},
        }
        for demo in scored
        if demo["result"]["evaluator"] == scored[0]["result"]["evaluator"]
    ]


# --- numbers as text ------------------------------------------------------------------------------

UNITS = re.compile(r"(?<=\d) ?%|(?<=\d) (?=(?:dB|ms|s|MB|nats|bits)\b)")
RELATIONS = re.compile(r"(?<=\w) ([=≤≥<>]) (?=[\d−-])")
MINUS = re.compile(r"(?<![\w.,)\]-])-(?=\d)")


def tidy(text: Any) -> str:
    """A text as a page sets it: number and unit stay on one line, '58%' is '58 %', '-1' is '−1'."""
    text = UNITS.sub(lambda found: "\u00a0" + found[0].strip(), str(text))
    return MINUS.sub("−", RELATIONS.sub("\u00a0\\1\u00a0", text))


def glossary(results: list[dict[str, Any]]) -> dict[str, str]:
    """Those words of GLOSSARY that the results use."""
    said: list[Any] = [
        [
            one["title"],
            one["summary"],
            one["learned"],
            list(one["metrics"]),
            one["tables"],
            one["files"],
        ]
        for one in results
    ]
    entries = [entry for one in results for entry in one["metrics"].values()]
    said += [
        line for line in ("floor", "memoriser") if any(e.get(line) is not None for e in entries)
    ]
    text = json.dumps(said, ensure_ascii=False)
    return {
        word: meaning
        for word, meaning in GLOSSARY.items()
        if re.search(rf"\b{re.escape(word)}\b", text)
    }


def measures(metrics: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Metrics as a table of texts: what any of them has beside its value gets a column of its own."""
    more = {
        "interval": "95 % interval", "floor": "floor", "memoriser": "memoriser", "better": "better",
    }  # fmt: skip
    there = [key for key in more if any(entry.get(key) is not None for entry in metrics.values())]
    rows = []
    for name, entry in metrics.items():
        shown = in_percent(entry) if is_share(entry, name) else entry
        texts = {
            "interval": " to ".join(number(edge) for edge in shown.get("interval") or ()),
            **{line: _or_nothing(shown.get(line)) for line in ("floor", "memoriser", "better")},
        }
        rows.append([name, short(entry, name), *(texts[key] for key in there), number(entry["n"])])
    return {"columns": ["measure", "value", *(more[key] for key in there), "n"], "rows": rows}


def _or_nothing(value: Any) -> str:
    return "" if value is None else number(value)


def named_metric(entry: dict[str, Any], name: str) -> str:
    """A metric as text, a share in percent: '4.1 % (95 %: 2.0 to 6.9, higher is better)'."""
    return metric_text(in_percent(entry) if is_share(entry, name) else entry)


def short(entry: dict[str, Any], name: str) -> str:
    """A metric's value and unit alone."""
    bare = dict.fromkeys(("floor", "memoriser", "better", "interval"))
    return named_metric({**entry, **bare}, name)


def lines(entry: dict[str, Any], name: str) -> str:
    """A metric's floor and memoriser, written as its value is: 'floor 14.3, memoriser 11.8'."""
    found = [(line, entry.get(line)) for line in ("floor", "memoriser")]
    return ", ".join(
        f"{line} {short({**entry, 'value': value}, name)}"
        for line, value in found
        if value is not None
    )


def headline(demo: dict[str, Any]) -> str:
    """The driver's one figure of the demo, with its name."""
    name, entry = _headline(demo)
    return f"{name}: {named_metric(entry, name)}" if name else demo["figure"]


def _headline(demo: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and metric of the figure that the driver's row names; empty where the record lacks it."""
    metrics = demo["result"]["metrics"] if demo["result"] else {}
    named = [name for name in metrics if demo["figure"].startswith(f"{name}: ")]
    name = max(named, key=len, default="")
    return name, metrics.get(name, {})


def is_share(entry: dict[str, Any], name: str) -> bool:
    value = entry["value"]
    return value is not None and not entry["unit"] and 0 <= value <= 1 and bool(SHARES.search(name))


def in_percent(entry: dict[str, Any]) -> dict[str, Any]:
    """The metric of a share with its value, its lines and its interval in percent, as text."""
    interval = entry.get("interval")
    found = {line: entry.get(line) for line in ("floor", "memoriser")}
    return {
        **entry,
        "value": percent(entry["value"]),
        "unit": "%",
        **{line: None if value is None else f"{percent(value)} %" for line, value in found.items()},
        "interval": interval and [percent(edge) for edge in interval],
    }


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def cell(value: Any, table: dict[str, Any], column: int) -> str:
    """A table's cell as text, in percent where its column holds shares and nothing else."""
    name = table["columns"][column]
    shares = SHARES.search(name) or (SHARES_ALL.search(table["caption"]) and name not in NO_SHARES)
    floats = [row[column] for row in table["rows"] if isinstance(row[column], float)]
    if not shares or not all(0 <= v <= 1 for v in floats):
        return number(value)
    if isinstance(value, float):
        return f"{percent(value)} %"
    # '0.885 (0.833 to 0.922)': a share of few, with its interval
    text = re.sub(r"\d\.\d+", lambda found: percent(float(found[0])), str(value))
    return re.sub(r"^([\d.]+) \(", r"\1 % (", text) if text != str(value) else number(value)


# --- cards ----------------------------------------------------------------------------------------


def card(demo: dict[str, Any]) -> dict[str, Any]:
    """A demo on the first screen: its best picture, small, and its figure in plain words."""
    pictures = [entry for entry in demo["result"]["files"] if entry["featured"]]
    wanted = BEST.get(demo["name"], "")
    best = next((entry for entry in pictures if entry["path"] == wanted), (pictures or [None])[0])
    return {
        "thumbnail": best and thumbnail(demo["source"] / best["path"]),
        "alt": best["caption"] if best else "",
        "figure": in_words(demo),
    }


def in_words(demo: dict[str, Any]) -> str:
    """The driver's one figure of the demo with its n, as a sentence where WORDS has one."""
    name, entry = _headline(demo)
    if not name or entry["value"] is None:
        return demo["figure"]
    words = WORDS.get(demo["name"], "")
    if not words or ("{floor}" in words and entry["floor"] is None):
        words = f"{name}: {{value}}."
    shown = in_percent(entry) if is_share(entry, name) else entry
    metrics = demo["result"]["metrics"]
    texts = {other: short(metrics[other], other) for other in metrics} | {
        "value": short(entry, name),
        "floor": number(shown["floor"]) if shown["floor"] is not None else "",
    }
    if not set(re.findall(r"{(.*?)}", words)) <= texts.keys():
        words = f"{name}: {{value}}."
    text = re.sub(r"{(.*?)}", lambda found: texts[found[1]], words)
    return f"{text.rstrip('.')} (n = {number(entry['n'])})."


def thumbnail(path: Path) -> str:
    """A picture for a card as a data URL; of a higher one the upper part, of a wider one the left."""
    from PIL import Image

    if not path.is_file() or path.suffix in VIDEOS:
        return ""
    with Image.open(path) as picture:
        picture = picture.convert("RGB")
    pixels, (width, height) = np.asarray(picture), THUMBNAIL
    rows = cut(pixels, len(pixels[0]) * height // width)
    whole = rows == len(pixels)
    columns = cut(pixels.swapaxes(0, 1), rows * width // height) if whole else pixels.shape[1]
    part = picture.crop((0, 0, columns, rows))
    part.thumbnail(THUMBNAIL, Image.Resampling.LANCZOS)
    return data_url(webp([np.asarray(part)], quality=75), "image/webp")


def cut(pixels: np.ndarray, most: int) -> int:
    """How many rows to keep of (rows, columns, 3): `most`, or fewer, up to a row of one colour."""
    if len(pixels) <= most:
        return len(pixels)
    plain = [k for k in range(most // 2, most) if (pixels[k] == pixels[k, 0]).all()]
    return plain[-1] + 1 if plain else max(most, 1)


# --- pictures -------------------------------------------------------------------------------------

VIDEOS = {".webm": "video/webm", ".mp4": "video/mp4"}


def _embed_all(results: list[tuple[list[dict[str, Any]], Path]], room: int) -> None:
    """Put the featured pictures of all results into their entries, each result with its folder.

    They take `room` bytes at most. Pictures that stand still come first, in their order, so that none is
    lost for an animation; then come animations and films, the smallest first.
    """
    shown = [
        (entry, _embed(folder / entry["path"]))
        for files, folder in results
        for entry in files
        if entry["featured"]
    ]
    shown.sort(key=lambda one: len(one[1]["data"]) if one[1]["frames"] > 1 else 0)
    for entry, picture in shown:
        if len(picture["data"]) > room:
            picture |= {"data": "", "missing": "this page has reached the size that it may have"}
        room -= len(picture["data"])
        entry.update(picture)
    for files, _ in results:
        _lay_out([entry for entry in files if entry["featured"]])


def _lay_out(pictures: list[dict[str, Any]]) -> None:
    """Mark those that take a whole row: large ones, and small ones that would be alone in theirs."""
    for entry in pictures:
        entry["wide"] = entry["width"] > 600
    waiting = None
    for entry in [*pictures, None]:
        if entry and not entry["wide"]:
            waiting = None if waiting else entry
        elif waiting:
            waiting["wide"], waiting = True, None


def _embed(path: Path) -> dict[str, Any]:
    """A picture as a data URL with its size in pixels; an empty URL where it is gone.

    Where that takes fewer bytes it becomes WebP: without loss and at one pixel a pixel where it is
    enlarged, as grids of samples are (then it is to be shown `pixelated`), else with a loss not seen.
    """
    from PIL import Image

    shown = {"data": "", "width": 0, "height": 0, "video": False, "pixelated": False, "missing": ""}
    shown |= {"frames": 1, "of": 1}  # how many of how many an animation shows
    if not path.is_file():
        return {**shown, "missing": "the file is gone"}
    raw, kind = path.read_bytes(), f"image/{path.suffix[1:]}"
    if path.suffix in VIDEOS:
        kind, shown["video"], shown["frames"] = VIDEOS[path.suffix], True, 2
    else:
        with Image.open(path) as picture:
            shown["width"], shown["height"] = picture.size
            shown["frames"] = shown["of"] = getattr(picture, "n_frames", 1)
            if path.suffix in (".png", ".gif") and len(raw) > 40_000:
                smaller, enlarged = _smaller(picture)
                if len(smaller) < len(raw):
                    raw, kind, shown["pixelated"] = smaller, "image/webp", enlarged
                    shown["frames"] = min(shown["of"], FRAMES)
    return {**shown, "data": data_url(raw, kind)}


def _smaller(picture) -> tuple[bytes, bool]:
    """A picture or an animation as WebP, and whether it was brought back to one pixel a pixel.

    An animation shows FRAMES of its frames at most, the first and the last among them, and lasts as long.
    """
    frames, durations = [], []
    count = getattr(picture, "n_frames", 1)
    taken = np.linspace(0, count - 1, min(count, FRAMES)).round()
    for k in range(count):
        picture.seek(k)
        if k in taken:
            frames.append(np.asarray(picture.convert("RGB")))
            durations.append(0)
        durations[-1] += picture.info.get("duration", 100)
    times = min(map(enlargement, frames))
    how = {"lossless": True} if times > 1 else {"quality": 84 if len(frames) == 1 else 60}
    if len(frames) > 1:
        how |= {"duration": durations, "loop": 0}
    return webp([frame[::times, ::times] for frame in frames], **how), times > 1


def enlargement(picture: np.ndarray) -> int:
    """How many times (1 to 4) each pixel of (H, W, 3) was repeated downwards and to the right."""
    for times in (4, 3, 2):
        height, width = picture.shape[:2]
        small = picture[::times, ::times]
        if (
            height % times == width % times == 0
            and (small.repeat(times, axis=0).repeat(times, axis=1) == picture).all()
        ):
            return times
    return 1
