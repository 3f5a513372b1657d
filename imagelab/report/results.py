"""What a run reports: `results.json` beside the pictures, and the summary in the terminal."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsFloat

import torch

from imagelab.data.tensors import Described
from imagelab.report import figures
from imagelab.report.numbers import FEW, Metric, metric_text, text_table, wilson
from imagelab.setup.files import atomic_path, claim, give_back
from imagelab.setup.runtime import UserError, machine, versions
from imagelab.setup.settings import Settings, settings_dict
from imagelab.setup.terminal import as_utf8, readable, tell_if_silent, wrapped
from imagelab.training import distributed

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(repr=False)
class Result:
    """What `run(config)` returns. Paths in `files` are relative to `folder`.

    A notebook shows it as its pictures and figures.
    """

    script: str
    title: str
    summary: str
    folder: Path
    config: dict[str, Any]
    seed: int
    device: str
    threads: int = field(default_factory=torch.get_num_threads)  # with others, other last bits
    dataset: dict[str, Any] | None = None
    learned: str = ""  # what the figures teach
    evaluator: str = ""  # the network in whose features distances are measured, with its hash
    seconds: float = 0.0
    metrics: dict[str, Metric] = field(default_factory=dict)
    tables: list[dict[str, Any]] = field(default_factory=list)
    files: list[dict[str, Any]] = field(default_factory=list)
    exit_status: int = 0
    started: float = field(default_factory=time.perf_counter)

    def describe(self, config: Settings, dataset: Described) -> None:
        """Note settings and data that are known only after the first picture."""
        self.config, self.dataset = settings_dict(config), dataset.describe()

    def add_metric(self, name: str, value: SupportsFloat, n: int, **more: Any) -> None:
        self.metrics[name] = Metric(float(value), int(n), **more)

    def add_share(self, name: str, share: SupportsFloat, n: int, **more: Any) -> None:
        """Add the share of n images (or of whatever else) of which something is true.

        Of fewer than 500 it gets its 95 % interval.
        """
        interval = wilson(float(share), n) if n < FEW else None
        self.add_metric(name, share, n, interval=interval, **more)

    def add_table(self, caption: str, columns: list[str], rows: list[list[Any]]) -> None:
        self.tables.append({"caption": caption, "columns": columns, "rows": rows})

    def add_file(self, name: str, caption: str, featured: bool = True) -> Path:
        """Note that `name` (in `folder`) is written, with one line on what to see; its path.

        Files that are not `featured` stay out of the report: single frames, raw grids.
        """
        tell_if_silent(f"Making {name}.")
        self.files.append({"path": name, "caption": caption, "featured": featured})
        return self.folder / name

    def add_figure(self, name: str, figure: Figure, caption: str) -> None:
        """Save a figure as `name` in the folder, with one line on what to see."""
        figures.save_figure(figure, self.add_file(name, caption))

    def note_file(self, name: str, caption: str) -> Path | None:
        """Note a picture of an epoch, not featured; its path, or None where a run was continued
        without the pictures from before."""
        if not (self.folder / name).is_file():
            return None
        return self.add_file(name, caption, featured=False)

    def measured(self, *names: str) -> list[float] | None:
        """The values of these metrics, or None where one was not measured or is not a number."""
        values = [self.metrics[name].value for name in names if name in self.metrics]
        complete = len(values) == len(names) and all(map(math.isfinite, values))
        return values if complete else None

    def pictures(self) -> list[Path]:
        return [self.folder / f["path"] for f in self.files if f["featured"]]

    def show(self) -> None:
        """Open the pictures in windows and wait until they are closed."""
        figures.show(self.pictures())

    def save(self, *lessons: str) -> Result:
        """Write `results.json` into the folder and return self.

        `lessons` are sentences on what the figures teach. A quick run states none: it is too short.
        """
        self.seconds = time.perf_counter() - self.started
        self.learned = "" if self.config.get("quick") else " ".join(lessons)
        write_json(self.folder / "results.json", {**self.record(), "versions": versions()})
        give_back(self.folder)  # in a notebook the process goes on
        return self

    def record(self) -> dict[str, Any]:
        """What `results.json` says of the run, but for the versions."""
        record = {k: v for k, v in asdict(self).items() if k not in ("started", "exit_status")}
        return _jsonable({**record, "folder": self.folder.name})

    def __repr__(self) -> str:
        figures, pictures = len(self.metrics), len(self.pictures())
        return f"<Result of {self.script}: {figures} figures, {pictures} pictures in {self.folder}>"

    def _repr_html_(self) -> str:
        from imagelab.report.page import notebook_html

        return notebook_html(self)

    def print_summary(self) -> None:
        for table in self.tables:
            print("\n" + wrapped(table["caption"]))
            print(text_table(table["columns"], table["rows"]))
        if self.metrics:
            print()
            rows = [[name, metric_text(asdict(m)), m.n] for name, m in self.metrics.items()]
            print(text_table(["measure", "value", "n"], rows))
        if self.learned:
            print("\n" + wrapped(self.learned))
        if self.config.get("quick"):
            print("\n" + wrapped("A quick run: too short to learn from these figures."))
        took = f"{self.seconds:.0f} s, " if self.seconds else ""  # 0: nothing was measured
        print(f"\n{took}seed {self.seed}, {self.device}. Look at:")
        for entry in self.files:
            if entry["featured"]:
                print(
                    wrapped(f"  {self.folder / entry['path']}  {entry['caption']}", indent=" " * 6)
                )


def start_result(
    module: str, title: str, summary: str, config: Settings, folder: str, device, dataset=None
) -> Result:
    """A Result whose clock starts now, for pictures in `folder` under --output-dir.

    Raises UserError where another run is writing into that folder, or where the user's own picture
    (--image) lies in it, which might be written over.
    """
    image = getattr(config, "image", None)
    if image is not None and image.resolve().parent == (config.output_dir / folder).resolve():
        raise UserError(
            f"{readable(image)} lies in the folder that this run writes into: move it elsewhere, or "
            "choose another --output-dir."
        )
    if distributed.writes():
        claim(Path(config.output_dir) / folder)
    return Result(
        script=module,
        title=title,
        summary=summary,
        folder=Path(config.output_dir) / folder,
        config=settings_dict(config),
        seed=config.seed,
        device=machine(device),
        dataset=dataset.describe() if dataset is not None else None,
    )


def write_json(path: Path, contents: Any) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(
            json.dumps(_jsonable(contents), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def _jsonable(value: Any) -> Any:
    """JSON knows no NaN or infinity, no paths, and no bytes that are not UTF-8."""
    if isinstance(value, dict):
        return {as_utf8(str(k)): _jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return as_utf8(str(value)) if isinstance(value, Path | str) else value
