"""`python -m export.int8 DIR --out DIR8`: an fp32 export again, with a UNet that multiplies in int8.

For CPUs whose operator prefers speed to exactness. NNCF quantises the graph after training, from the calls of pictures
that it draws by the way; what comes out is plain ONNX (QuantizeLinear, DequantizeLinear) for any provider of a CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib
import importlib.metadata
import json
import logging
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from tokenizers import Tokenizer

from engines.component import Arrays, Component, PipelineSpec, file_sha256, folder_sha256
from engines.errors import EngineError
from engines.picture import TRAINED_STEPS, Case, context, denoise, feeds
from engines.runner import Runner, open_runner
from engines.verify import difference
from export.errors import ExportError, ParityError, unwritable
from export.export import SUFFIXES, exported, publish
from export.unfinished import unfinished

logger = logging.getLogger(__name__)

UNET = "unet"
# Weights of the layers that stay in fp32: the first, the last and what the timestep goes through. On the embedded
# checkpoint they are worth 7 dB of a picture in int8, and the attention's products nothing.
EDGES = ("*conv_in.weight", "*conv_out.weight", "*time_emb*.weight", "*add_embedding*.weight", "*class_embedding*")
# What is asked of image generators; a fleet gives its own, for ranges are best taken from what will be drawn.
PROMPTS = (
    "a red circle on a blue background",
    "a photo of a lighthouse at dusk, long exposure",
    "a large yellow star above a green square on a white background",
    "portrait of an old fisherman, oil painting",
    "a small black triangle on the left on an orange background",
    "a bowl of fruit on a wooden table, soft light",
    "a purple ring left of a pink heart on a cyan background",
    "isometric drawing of a city street at night",
)
MULTIPLYING = ("Conv", "Gemm", "MatMul")
# Beyond this a graph keeps its weights beside it; protobuf ends at 2 GiB.
EXTERNAL_DATA_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Calibration:
    """The calls that ranges are taken from.

    Attributes:
        prompts: taken by turns.
        pictures: each from its own noise and a prompt, by turns in the export's resolutions.
        steps: of each; they cover the timesteps evenly.
    """

    prompts: tuple[str, ...] = PROMPTS
    pictures: int = 8
    steps: int = 10


class Recorder:
    """A runner that remembers what went in and what came out."""

    def __init__(self, runner: Runner) -> None:
        self.component = runner.component
        self.provider = runner.provider
        self.calls: list[tuple[Arrays, Arrays]] = []
        self._runner = runner

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        outputs = self._runner.infer(feeds)
        self.calls.append(({name: array.copy() for name, array in feeds.items()}, outputs))
        return outputs


def quantize(folder: Path, out: Path, calibration: Calibration = Calibration()) -> PipelineSpec:
    """Write the export in `folder` to `out`, its UNet in int8; nothing is done twice for one key.

    The other files are hard links where the file system has them. The UNet has no `unet.weights.json`: its weights
    cannot be exchanged.

    Raises:
        ExportError: NNCF is not installed, the export has no UNet in fp32, or `out` cannot be written.
        ArtefactError: the export is missing or damaged.
        ParityError: the UNet in int8 gives values that are no numbers.
    """
    spec = PipelineSpec.read(folder)
    _check(spec, folder, out)
    key = _key(spec, calibration)
    kept = exported(out, key)
    if kept and set(kept.components) == set(spec.components) and _has_tokenizer(kept, out):
        logger.info("%s is up to date", out)
        return kept
    spec.verify(folder)
    try:
        with unfinished(out) as made:
            _link_others(spec, folder, made)
            unet = _quantized_unet(spec, folder, made, calibration)
            spec = dataclasses.replace(spec, key=key, components={**spec.components, UNET: unet})
            spec.write(made)
            publish(made, out, spec)
    except OSError as error:
        raise unwritable(out, error) from error
    return spec


def _check(spec: PipelineSpec, folder: Path, out: Path) -> None:
    """Raises ExportError where there is nothing to quantise, nothing to do it with, or nowhere to write it."""
    if importlib.util.find_spec("nncf") is None:
        raise ExportError("int8 needs NNCF, which is not installed; run `pip install '.[int8]'`")
    if UNET not in spec.components:
        raise ExportError(f"{folder} has no UNet, only {', '.join(spec.components)}; give an export that has one")
    if (precision := spec.component(UNET).precision) != "fp32":
        raise ExportError(f"the UNet in {folder} is in {precision}; give an export made with --precision fp32")
    if out.resolve() == folder.resolve():
        raise ExportError(f"--out {out} is the export itself, which stays the reference; give another folder")


def _key(spec: PipelineSpec, calibration: Calibration) -> str:
    """SHA-256 over all that the int8 files depend on."""
    parts = {
        "export": spec.key,
        "calibration": dataclasses.asdict(calibration),
        "makers": {name: importlib.metadata.version(name) for name in ("nncf", "onnx", "onnxruntime")},
        "source": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _has_tokenizer(spec: PipelineSpec, folder: Path) -> bool:
    return folder_sha256(folder / spec.tokenizer) == spec.tokenizer_sha256


def _link_others(spec: PipelineSpec, folder: Path, made: Path) -> None:
    shutil.copytree(folder / spec.tokenizer, made / spec.tokenizer)
    for name in spec.components:
        for suffix in SUFFIXES if name != UNET else ():
            source = folder / f"{name}{suffix}"
            if source.is_file():
                _link(source, made / source.name)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)


def _quantized_unet(spec: PipelineSpec, folder: Path, made: Path, calibration: Calibration) -> Component:
    """`unet.onnx` in `made`, compared with fp32 on a picture that ranges were not taken from."""
    fp32 = spec.component(UNET)
    *pictures, unseen = record(spec, folder, calibration)
    path = made / f"{UNET}.onnx"
    _save(_quantized(folder / fp32.file, [inputs for calls in pictures for inputs, _ in calls]), path)
    component = dataclasses.replace(fp32, file=path.name, precision="int8", sha256=file_sha256(path))
    runner = open_runner(component, made, "cpu")
    found = [difference(UNET, "int8", runner.infer(inputs), outputs) for inputs, outputs in unseen]
    largest, mean = max(one.largest for one in found), float(np.mean([one.mean for one in found]))
    if not np.isfinite(largest):
        raise ParityError("the UNet in int8 gives values that are no numbers; serve this checkpoint in fp32 or bf16")
    return dataclasses.replace(component, parity={"largest_scaled": largest, "mean_scaled": mean})


def record(spec: PipelineSpec, folder: Path, calibration: Calibration) -> list[list[tuple[Arrays, Arrays]]]:
    """By picture, what goes into the fp32 UNet at each step and what comes out; one picture more than is asked for."""
    cases = [
        Case(spec.resolutions[seed % len(spec.resolutions)], calibration.steps, seed=seed)
        for seed in range(calibration.pictures + 1)
    ]
    texts: list[dict[str, Arrays]] = [{} for _ in cases]
    for name in spec.components:
        if name.startswith("text_encoder"):
            encoder = open_runner(spec.component(name), folder, "cpu")
            for case, found in zip(cases, texts, strict=True):
                prompt = calibration.prompts[case.seed % len(calibration.prompts)]
                fed = feeds(encoder.component, spec, case, 2)
                fed["input_ids"][:] = [tokens(text, spec, folder, name) for text in ("", prompt)]
                if "clip_skip" in fed:
                    fed["clip_skip"][:] = 0
                found[name] = encoder.infer(fed)
    unet = open_runner(spec.component(UNET), folder, "cpu")
    recorders = [Recorder(unet) for _ in cases]
    for case, found, recorder in zip(cases, texts, recorders, strict=True):
        denoise(recorder, spec, case, context(spec, found))
    return [recorder.calls for recorder in recorders]


def tokens(prompt: str, spec: PipelineSpec, folder: Path, encoder: str) -> list[int]:
    """One chunk of `context_length` tokens for a text encoder; what does not fit into it is left out."""
    number = encoder.removeprefix("text_encoder")
    tokenizer = Tokenizer.from_file(str(folder / spec.tokenizer / f"tokenizer{number}.json"))
    special = json.loads((folder / spec.tokenizer / f"config{number}.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer.get_vocab()
    start, end, pad = (vocabulary[special[name]] for name in ("start", "end", "pad"))
    words = tokenizer.encode(prompt, add_special_tokens=False).ids[: spec.context_length - 2]
    return [start, *words, end, *[pad] * (spec.context_length - 2 - len(words))]


def _quantized(path: Path, calls: list[Arrays]) -> onnx.ModelProto:
    """The graph in `path` with int8 weights and activations, but for its edges."""
    # Else it reports each use to its makers.
    os.environ.setdefault("NNCF_CI", "1")
    nncf = importlib.import_module("nncf")
    # It tells of each node that stays as it is, at the level at which we tell results.
    nncf.set_log_level(logging.WARNING)
    model = onnx.load(path, load_external_data=False)
    quantized: onnx.ModelProto = nncf.quantize(
        model,
        nncf.Dataset(calls),
        subset_size=len(calls),
        model_type=nncf.ModelType.TRANSFORMER,
        ignored_scope=nncf.IgnoredScope(names=edges(model)),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            # On the embedded checkpoint it costs 2 to 5 dB of a picture.
            smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
            backend_params={"external_data_dir": str(path.resolve().parent)},
        ),
    )
    return quantized


def edges(model: onnx.ModelProto) -> list[str]:
    """The names of the nodes that multiply by a weight of `EDGES`."""
    return [
        node.name
        for node in model.graph.node
        if node.op_type in MULTIPLYING
        and any(fnmatchcase(weight, pattern) for weight in node.input for pattern in EDGES)
    ]


def _save(model: onnx.ModelProto, path: Path) -> None:
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    onnx.save_model(model, path, save_as_external_data=size > EXTERNAL_DATA_BYTES, location=f"{path.name}.data")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m export.int8", description=(__doc__ or "").split("\n\n")[0])
    made.add_argument("folder", type=Path, metavar="DIR", help="an export made with --precision fp32")
    made.add_argument("--out", type=Path, required=True, help="folder to write; `server launch --model` takes it")
    usual = Calibration()
    made.add_argument("--pictures", type=int, default=usual.pictures,
                      help="to take ranges from; each is drawn in fp32 (default: %(default)s)")  # fmt: skip
    made.add_argument("--steps", type=int, default=usual.steps, help="of each (default: %(default)s)")
    made.add_argument("--prompts", type=Path, metavar="FILE",
                      help="one a line, such as will be asked for (default: a few of all kinds)")  # fmt: skip
    return made


def _prompts(path: Path) -> tuple[str, ...]:
    """Raises ExportError where the file holds none."""
    try:
        found = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"--prompts {path} cannot be read ({error}); give a text file in UTF-8") from error
    if not found:
        raise ExportError(f"--prompts {path} holds no prompt; write one a line")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 when the int8 export is complete."""
    made = parser()
    options = made.parse_args(arguments)
    if options.pictures < 1 or not 1 <= options.steps <= TRAINED_STEPS:
        made.error(f"--pictures must be at least 1, and --steps 1 to {TRAINED_STEPS}")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    try:
        prompts = _prompts(options.prompts) if options.prompts else PROMPTS
        spec = quantize(options.folder, options.out, Calibration(prompts, options.pictures, options.steps))
    except (ExportError, EngineError, OSError) as error:
        print(f"export.int8: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("export.int8: interrupted; what was there before is unchanged", file=sys.stderr)
    else:
        found = spec.component(UNET).parity
        print(f"{options.out}: the UNet in int8 differs from fp32 by {found['largest_scaled']:.1e} at most and "
              f"{found['mean_scaled']:.1e} on average, in standard deviations")  # fmt: skip
        print(f"compare pictures: python -m engines verify {options.out} --reference {options.folder}")
        return 0
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
