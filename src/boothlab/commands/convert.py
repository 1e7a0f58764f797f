"""`boothlab convert`: what an adapter file holds, and the same adapter in another tool's format."""

from pathlib import Path
from typing import TYPE_CHECKING

from boothlab.commands.arguments import split_arguments, switch, usage_page
from boothlab.errors import UserError
from boothlab.files import shown
from boothlab.progress import Reporter

if TYPE_CHECKING:
    from boothlab.diffusion.formats.adapter import Adapter, Layer
    from boothlab.diffusion.formats.architecture import Architecture

FORMATS = ("peft", "diffusers", "kohya", "cloneofsimo")
KEYS = {
    "to": "the format to write: peft, diffusers, kohya (A1111, ComfyUI) or cloneofsimo; without it nothing is written",
    "out": "the file to write, or for peft the folder (default: beside the source, named for the format)",
    "base": "the model it is for, to check names and shapes against: sd15, sd21, sdxl, dollhouse or a pipeline folder "
    "(default: recognised by shapes)",
    "repair": "true mends keys with a wrapper's prefix (model., base_model.model., …) or without unet.",
    "prefix": "a prefix to take off the keys that have it",
}
USAGE = "boothlab convert FILE [to=FORMAT] [key=value …]"
ABOUT = (
    "What an adapter holds and, with to=, the same adapter for another tool. Numbers and alphas stay as they are,\n"
    "bit for bit; every file is read back and compared before it is put in its place. FILE is a .safetensors file\n"
    "of any of the formats, a folder that PEFT wrote, or a run folder. LoRA goes into every format, DoRA into all\n"
    "but cloneofsimo's, LoHa and LoKr into peft and kohya (there under LyCORIS' names)."
)
EXAMPLES = (
    ("boothlab convert photo_lora.safetensors", "format, kind, ranks, alphas, layers, precision, model"),
    ("boothlab convert outputs/train/RUN to=kohya", "for A1111 and ComfyUI"),
    ("boothlab convert civitai.safetensors to=diffusers out=plain.safetensors", "for load_lora_weights"),
    ("boothlab convert wrapped.safetensors to=diffusers repair=true", "with names that loaders know"),
)


def run(argv: list[str]) -> int:
    """Run the command and return its exit code."""
    if any(word in ("-h", "--help") for word in argv):
        print(usage_page(USAGE, ABOUT, KEYS, EXAMPLES))
        return 0
    words, values = split_arguments(argv, KEYS, "convert", positional=1)
    if not words:
        raise UserError(f"which file? usage: {USAGE}")
    to = values.get("to")
    if to is not None and to not in FORMATS:
        raise UserError(f"to={shown(to)}: is none of the formats {', '.join(FORMATS)}")
    if to is None and "out" in values:
        raise UserError("out: is for a file to be written; say in which format with to=")
    repair = switch(values, "repair")
    source = Path(words[0]).expanduser()
    if not source.exists():
        raise UserError(f"{shown(source)}: no such file or folder; check the path")
    _convert(source, to, values, repair)
    return 0


def _convert(source: Path, to: str | None, values: dict[str, str], repair: bool) -> None:
    reporter = Reporter()
    # torch and diffusers: only once the arguments are known to be good
    from boothlab.diffusion.formats.architecture import architecture_of, recognise
    from boothlab.diffusion.formats.convert import convert
    from boothlab.diffusion.formats.read import read_adapter, refuse_zero
    from boothlab.diffusion.lora import find_adapter, read_metadata

    path = find_adapter(source)
    base = values.get("base") or _own_base(read_metadata(path))
    architecture = architecture_of(base) if base else None
    adapter = read_adapter(path, architecture, repair=repair, prefix=values.get("prefix"), products=True)
    refuse_zero(adapter, path)
    nearest = (architecture,) if architecture else recognise(adapter.layers())
    print("\n".join(_summary(path, adapter, nearest, checked=architecture is not None or len(nearest) == 1)))
    for note in adapter.notes:
        reporter.say(note, tag="mended ", style="yellow")
    if to is None:
        return
    out = _out(values.get("out"), source, path, to)
    written = convert(adapter, to, out, nearest[0] if nearest else None)
    for file in written.files:
        reporter.say(shown(file), tag="written", style="green")
    for note in written.notes:
        reporter.say(note, tag="note   ", style="yellow")


def _own_base(settings: object) -> str | None:
    """What a run of boothlab was trained on, where its layers can be known without the network."""
    backbone = settings.get("backbone") if isinstance(settings, dict) else None
    name = str(backbone.get("name")) if isinstance(backbone, dict) else ""
    return name if name in ("dollhouse", "sd15", "sd21", "sdxl") else None


def _out(asked: str | None, source: Path, path: Path, to: str) -> Path:
    """Where the result goes; Raises UserError for a place that is no file of safetensors."""
    from boothlab.diffusion.formats.diffusers_format import FILE_NAME

    stem = source.name if source.is_dir() else path.name.removesuffix(".safetensors")
    name = f"{stem or 'adapter'}_{to}" + ("" if to == "peft" else ".safetensors")
    if asked is None:
        return (source.parent if source.is_file() or path == source else source / "lora") / name
    out = Path(asked).expanduser()
    if to == "peft":
        return out
    if out.is_dir() or asked.endswith("/"):
        return out / (FILE_NAME if to == "diffusers" else name)
    if out.suffix != ".safetensors":
        raise UserError(f"out={shown(out)}: is written as safetensors; give it a name that ends in .safetensors")
    return out


def _summary(path: Path, adapter: "Adapter", nearest: tuple["Architecture", ...], *, checked: bool) -> list[str]:
    """What a reader wants to know of an adapter, a line each."""
    from boothlab.diffusion.formats.adapter import as_text
    from boothlab.diffusion.formats.container import peft_files

    files = peft_files(path) if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files)
    counted = {component: len(layers) for component, layers in adapter.components.items()}
    names = " or ".join(one.version or one.name for one in nearest) or "not recognised; names and shapes are unchecked"
    convolutions = sum(_kernel(*one, nearest) not in ((), (1, 1)) for one in adapter.layers())
    rows = {
        "file": shown(path),
        "format": adapter.format,
        "kind": _kinds(adapter),
        "model": f"{names}{' (every layer found, shapes fit)' if checked else ''}",
        "layers": ", ".join(f"{component} {count}" for component, count in counted.items())
        + (f" ({convolutions} of them convolutions)" if convolutions else ""),
        "rank": _counted({str(rank): count for rank, count in sorted(adapter.ranks.items())}),
        "alpha": _counted({as_text(alpha): count for alpha, count in sorted(adapter.alphas.items())}),
        "words": ", ".join(
            f"{shown(word)} [{', '.join(map(str, vector.shape))}]"
            for word, vector in sorted(adapter.embeddings.items())
        ),
        "dtype": ", ".join(adapter.dtypes),
        "size": f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB",
    }
    return [f"{name:<7}  {value}" for name, value in rows.items() if value]


def _kernel(component: str, path: str, layer: "Layer", nearest: tuple["Architecture", ...]) -> tuple[int, ...]:
    """The size of a convolution's kernel, empty of a linear layer; of a LoHa or LoKr only the model's shapes say it."""
    if "down" in layer.tensors:
        return tuple(layer.tensors["down"].shape[2:])
    return next((one.shapes[component][path][2:] for one in nearest if path in one.shapes.get(component, {})), ())


def _kinds(adapter: "Adapter") -> str:
    """`LoRA`, or `DoRA (unet), LoRA (text_encoder)` where the networks differ."""
    from boothlab.diffusion.formats.layers import NAMES

    found = {component: NAMES[next(iter(held.values())).variant] for component, held in adapter.components.items()}
    if len(set(found.values())) < 2:
        return next(iter(found.values()), "")
    return ", ".join(f"{name} ({component})" for component, name in found.items())


def _counted(counts: dict[str, int]) -> str:
    """`4`, or `4 (in 100 layers), 8 (in 28)`."""
    if len(counts) == 1:
        return next(iter(counts))
    parts = [f"{value} (in {count}{' layers' if i == 0 else ''})" for i, (value, count) in enumerate(counts.items())]
    return ", ".join(parts[:6]) + (", …" if len(parts) > 6 else "")
