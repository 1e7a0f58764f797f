"""`boothlab publish`: what a run trained with a model card, as a folder, and on the hub when asked."""

import shlex
from pathlib import Path

from boothlab.commands.arguments import split_arguments, switch, usage_page
from boothlab.errors import UserError
from boothlab.files import shown
from boothlab.progress import Reporter

KEYS = {
    "run": "the folder of a finished run of `boothlab train`, of any method",
    "checkpoint": "last, best, or the number of a step that has a checkpoint (default: last)",
    "best_by": "with checkpoint=best the score that decides: balanced, clip_i, dino or clip_t (default: balanced)",
    "out": "the folder to write (default: RUN/publish)",
    "repo": "user/name on the hub",
    "upload": "true uploads it to repo; the token is that of `hf auth login` or HF_TOKEN (default: false)",
    "private": "false makes the repository public (default: true)",
    "base_model": "the hub id of the base model, where the run had a local copy of it",
    "license": "the hub's name of the licence (default: the base model's, where it is known)",
    "photos": "true puts the subject's photos into the folder (default: false)",
}
USAGE = "boothlab publish run=DIR [checkpoint=best] [repo=user/name upload=true] [key=value …]"
ABOUT = (
    "A folder that others can use: the adapter for diffusers and for A1111 and ComfyUI, the learned word, or the\n"
    "whole network, whatever the run trained; a model card with code, settings, scores and their definitions; and\n"
    "samples. Nothing leaves this machine without upload=true. The photos, paths, names and keys stay out of it; the\n"
    "licence of the photos is yours to see to."
)
EXAMPLES = (
    ("boothlab publish run=outputs/train/RUN", "the folder outputs/train/RUN/publish, to look at"),
    ("boothlab publish run=outputs/train/RUN checkpoint=best", "not the last step, but the one of the best scores"),
    ("boothlab publish run=outputs/train/RUN repo=ann/robot upload=true", "to a private repository of the hub"),
    ("boothlab publish run=outputs/train/RUN base_model=stable-diffusion-v1-5/stable-diffusion-v1-5", "base"),
)


def run(argv: list[str]) -> int:
    """Run the command and return its exit code."""
    if any(word in ("-h", "--help") for word in argv):
        print(usage_page(USAGE, ABOUT, KEYS, EXAMPLES))
        return 0
    words, values = split_arguments(argv, KEYS, "publish", positional=1)
    named = values.get("run") or (words[0] if words else "")
    if not named or (words and "run" in values):
        raise UserError(f"which run? usage: {USAGE}")
    run_dir = Path(named).expanduser()
    wants_upload = switch(values, "upload")
    private, photos = switch(values, "private", True), switch(values, "photos")
    if wants_upload and "repo" not in values:
        raise UserError("upload=true: to which repository? add repo=user/name")
    _publish(run_dir, values, wants_upload, private, photos)
    return 0


def _publish(run_dir: Path, values: dict[str, str], wants_upload: bool, private: bool, photos: bool) -> None:
    # torch and the hub's library: only once the arguments are known to be good
    from boothlab.publishing.choice import check_choice
    from boothlab.publishing.folder import build_folder
    from boothlab.publishing.upload import check_repo, upload
    from boothlab.publishing.weights import size_text

    repo, checkpoint, best_by = values.get("repo"), values.get("checkpoint", "last"), values.get("best_by")
    if repo is not None:
        check_repo(repo)
    check_choice(checkpoint, best_by)
    reporter = Reporter()
    out = Path(values["out"]).expanduser() if "out" in values else run_dir / "publish"
    facts, files = build_folder(
        run_dir, out, base_model=values.get("base_model"), licence=values.get("license"), photos=photos,
        checkpoint=checkpoint, best_by=best_by, repo=repo, reporter=reporter,
    )  # fmt: skip
    reporter.say(facts.choice.told, tag="step   ", style="green")
    for file in files:
        reporter.say(shown(file), tag="written", style="green")
    size = f"{size_text(sum(file.stat().st_size for file in files))} in {len(files)} files"
    if facts.licence is None:
        reporter.say("the base model's licence is not known here: name it with license=", tag="note   ", style="yellow")
    reporter.say("the licence of the subject's photos is yours to see to", tag="note   ", style="yellow")
    if wants_upload and repo is not None:
        reporter.say(f"{size} to {'a private' if private else 'the public'} {repo}", tag="upload ", style="green")
        reporter.say(upload(out, repo, private=private), tag="hub    ", style="green")
    else:
        reporter.say(f"nothing was uploaded; this uploads {size}: {_again(run_dir, values)}")


def _again(run_dir: Path, values: dict[str, str]) -> str:
    """The command that uploads what was just written."""
    others = {key: value for key, value in values.items() if key not in ("run", "repo", "upload")}
    given = {"run": str(run_dir), **others, "repo": values.get("repo", "user/name"), "upload": "true"}
    return " ".join(["boothlab", "publish", *(shlex.quote(f"{key}={shown(value)}") for key, value in given.items())])
