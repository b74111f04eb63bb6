"""Plans of TensorRT that nothing can run, with true manifests, for whoever reads these alone."""

from __future__ import annotations

from pathlib import Path

from engines.component import PipelineSpec, file_sha256
from engines.manifest import Manifest, Options, Recipe
from engines.profiles import TOKENS, Rows, Tokens, component_profile, latent_sides

ROWS, PLAIN = Rows(1, 4, 12), Options()
VERSION = "11.4.0"


def write_plan(
    folder: Path,
    spec: PipelineSpec,
    name: str,
    resolution: tuple[int, int] | None,
    capability: tuple[int, int],
    *,
    rows: Rows = ROWS,
    tokens: Tokens = TOKENS,
    options: Options = PLAIN,
) -> None:
    """A plan of those bytes that its key has, with a manifest that is in order."""
    component = spec.component(name)
    latent = latent_sides(resolution or spec.resolutions[0], spec.downscale)
    recipe = Recipe(
        component=name,
        onnx_sha256=component.sha256,
        fingerprint=spec.fingerprint,
        export_key=spec.key,
        precision="fp16",
        resolution=resolution,
        profile=component_profile(component, latent, rows, tokens),
        compiler="tensorrt",
        version=VERSION,
        capabilities=(capability,),
        options=options,
    )
    plan = folder / "plans" / f"{recipe.stem}.plan"
    plan.write_bytes(recipe.key.encode())
    state = plan.stat()
    manifest = Manifest(
        recipe=recipe,
        key=recipe.key,
        sha256=file_sha256(plan),
        size=state.st_size,
        modified_ns=state.st_mtime_ns,
        profile=recipe.profile,
        level=3,
        concessions=(),
        layers={},
        seconds=1.0,
        peak_bytes=1,
        made="2026-01-01T00:00:00Z",
    )
    plan.with_suffix(".json").write_text(manifest.to_json())
