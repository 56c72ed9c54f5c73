"""The command line: one verb a file, imported when it is used, so that help and errors answer at once."""

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

VERBS = {
    "train": "Train a recipe: a first stage or a denoiser.",
    "encode": "Encode a data set once into a cache of latents.",
    "generate": "Make pictures from words, a class, or nothing.",
    "vary": "Make other pictures like a given one.",
    "inpaint": "Fill a hole in a picture, or add to its sides.",
    "upscale": "Make a picture larger, with detail.",
    "layout": "Make a picture whose things stand where boxes say.",
    "semantic": "Make a picture from a map that says what is where.",
    "panorama": "Make a picture larger than the model was trained on.",
    "evaluate": "Measure a model folder on held-out data.",
    "fetch": "Download a published feature network by its name.",
    "convert": "Turn foreign weights into a model folder, or a model folder into half its size.",
    "ema": "Rebuild another average of the weights after a run, or compare several.",
    "bench": "Measure what feeds a training step, and say what the bottleneck is.",
    "show": "Print a recipe or a model folder, or draw what a network will see of your pictures.",
    "schema": "Print the JSON schema of recipes, for editors.",
    "study": "Check a claim of the paper here: train what it compares, measure, and say what holds.",
    "demo": "Train everything from scratch on emoji and write a page that shows it.",
}
HELP = "Train, use and measure latent diffusion models."
SAMPLING = ("generate", "vary", "inpaint", "upscale", "layout", "semantic", "panorama")
LESS = {  # what takes less memory, by verb
    "train": 'give training.accumulate=auto, "training.checkpointing=[1,2]" or a smaller training.batch',
    **dict.fromkeys(SAMPLING, "give a smaller --batch, or make a smaller picture"),
}


def usage() -> str:
    """What `sfumato --help` prints."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {text}" for name, text in VERBS.items())
    return (
        f"Usage: sfumato VERB [OPTIONS]\n\n{HELP}\n\nVerbs:\n{verbs}\n\n"
        "Options:\n  --version  Print the version.\n  --help     Print this; `sfumato VERB --help` tells a verb's options.\n"
        "  --trust    With any verb: model folders may name kinds that are foreign code, which runs.\n"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; ends with exit code 0, 2 (bad input or no memory left, one sentence), 130 (interrupted)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):  # which on Windows, into a file, have few letters
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    trusted = "--trust" in words
    words = [word for word in words if word != "--trust"]
    if not words or words[0] in ("--help", "-h", "help"):
        print(usage(), end="")
        sys.exit(0 if words else 2)
    if words[0] == "--version":
        from sfumato import __version__

        print(f"sfumato {__version__}")
        sys.exit(0)
    if words[0] not in VERBS:
        print(f"sfumato: there is no verb {words[0]!r}; known: {', '.join(VERBS)}", file=sys.stderr)
        sys.exit(2)
    # Both cores are rarely ours alone: threads that spin while they wait slow everything down.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Nothing is fetched or reported unless the user asks for it by name.
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        os.environ.setdefault(name, "1")
    with contextlib.ExitStack() as stack:
        if trusted:
            from sfumato.config import trusting_all

            stack.enter_context(trusting_all())
        _run(words[0], words[1:])


def _run(verb: str, rest: list[str]) -> None:
    import typer

    module = importlib.import_module(f"sfumato.cli.{verb}")
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(name=verb, help=VERBS[verb], context_settings={"token_normalize_func": _dashed})(module.command)
    parser = typer.main.get_command(app)
    try:
        # not by the parser's own `main`: it swallows an interruption, and with it the sentence that says how to go on
        with parser.make_context(f"sfumato {verb}", rest) as context:
            _invoke(lambda: parser.invoke(context))
    except typer.Exit as end:
        sys.exit(end.exit_code)
    except typer.Abort:
        sys.exit(130)
    except _usage_error() as error:
        fail(error.format_message())
    except KeyboardInterrupt as error:
        print(f"\nsfumato: {str(error) or 'interrupted'}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ValueError, OSError, FloatingPointError) as error:
        fail(explained(error))
    except (MemoryError, RuntimeError) as error:
        if uncompiled(error):
            reason = str(error).strip().splitlines() or [type(error).__name__]
            fail(
                f"the networks cannot be compiled here ({reason[0]}): give training.compile=off, or install a C compiler"
            )
        if not exhausted(error):
            raise
        fail(f"there is not enough memory: {LESS.get(verb, 'free some, or use a machine that has more')}")


def _invoke(verb: Callable[[], Any]) -> None:
    """Run the verb; under `torchrun` as one of several processes, of which the first speaks."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        verb()
        return
    from sfumato import distributed

    with distributed.joined():
        if distributed.chief():
            verb()
        else:
            with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
                verb()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # gloo's threads may outlive the interpreter, which then aborts a process that is done


def _dashed(name: str) -> str:
    """`--cfg_scale` is `--cfg-scale`: users come with both habits."""
    return name.replace("_", "-")


def _usage_error() -> Any:
    """What typer raises for wrong words: click's own class, or the one of the click that newer typers carry."""
    import typer

    return next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def explained(error: Exception) -> str:
    """The sentence of an error that is the user's to mend."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        from sfumato.config import explain

        return explain(error, "request")
    return str(error)


def exhausted(error: Exception) -> bool:
    """Whether an error says that memory has run out, the machine's or the accelerator's; torch is not imported to ask."""
    kind: Any = getattr(sys.modules.get("torch"), "OutOfMemoryError", MemoryError)
    told = str(error)  # allocators of CPUs and of Apple's GPUs raise no error of their own
    return isinstance(error, (MemoryError, kind)) or "out of memory" in told or "DefaultCPUAllocator" in told


def uncompiled(error: Exception) -> bool:
    """Whether an error is PyTorch's compiler's, which wants a C compiler on the machine; it is not imported to ask."""
    kind: Any = getattr(sys.modules.get("torch._dynamo.exc"), "TorchDynamoException", None)
    return kind is not None and isinstance(error, kind)


def fail(text: str) -> None:
    """Print one sentence to stderr and exit with code 2."""
    print(f"sfumato: {text}", file=sys.stderr)
    sys.exit(2)
