"""The providers' options are data: nothing here needs a GPU, or ONNX Runtime."""

import json
from pathlib import Path

import pytest

from engines import providers
from engines.profiles import ShapeRange
from engines.providers import (
    OPENVINO,
    PREFERENCE,
    PROVIDERS,
    Settings,
    chain,
    context_settings,
    cpu_has_bf16,
    default_cache,
    openvino_properties,
    serves_any_size,
)

CACHE = Path("/cache")


def shapes(side: int) -> dict[str, ShapeRange]:
    """A profile of 1 to 16 rows."""
    rows = (1, 8, 16)
    return {
        "sample": ShapeRange(*((n, 4, side, side) for n in rows)),
        "timestep": ShapeRange(*((n,) for n in rows)),
    }


def test_every_provider_has_a_place_in_the_preference() -> None:
    assert set(PREFERENCE) == {*PROVIDERS, OPENVINO}
    assert PREFERENCE[-1] == "cpu"


def test_all_options_are_texts_as_onnx_runtime_wants_them() -> None:
    settings = Settings(threads=2, pinned=True, cache=CACHE, device=1, cuda_graphs=True, profiles=(shapes(64),))
    for provider in PROVIDERS.values():
        for key, value in provider.options(settings).items():
            assert isinstance(value, str), key


@pytest.mark.parametrize("name", ["cuda", "tensorrt", "tensorrt_rtx"])
def test_a_gpu_is_told_which_it_is_and_whether_to_record_graphs(name: str) -> None:
    plain = PROVIDERS[name].options(Settings())
    graphs = PROVIDERS[name].options(Settings(device=3, cuda_graphs=True))
    assert (plain["device_id"], graphs["device_id"]) == ("0", "3")
    changed = {key for key in graphs if graphs[key] != plain[key]} - {"device_id"}
    assert changed <= {"enable_cuda_graph", "trt_cuda_graph_enable"}
    assert [graphs[key] for key in changed] == ["1"]


@pytest.mark.parametrize("name", ["cuda", "tensorrt", "tensorrt_rtx"])
def test_no_gpu_is_told_a_precision(name: str) -> None:
    """The graph is typed, and TensorRT 11 has no such option."""
    options = PROVIDERS[name].options(Settings(cache=CACHE, profiles=(shapes(64),)))
    assert not [key for key in options if any(word in key for word in ("fp16", "bf16", "int8", "fp8"))]


@pytest.mark.parametrize(("name", "prefix"), [("tensorrt", "trt"), ("tensorrt_rtx", "nv")])
def test_profiles_are_written_one_after_the_other(name: str, prefix: str) -> None:
    options = PROVIDERS[name].options(Settings(profiles=(shapes(64), shapes(96))))
    assert options[f"{prefix}_profile_min_shapes"] == "sample:1x4x64x64,timestep:1,sample:1x4x96x96,timestep:1"
    assert options[f"{prefix}_profile_opt_shapes"] == "sample:8x4x64x64,timestep:8,sample:8x4x96x96,timestep:8"
    assert options[f"{prefix}_profile_max_shapes"] == "sample:16x4x64x64,timestep:16,sample:16x4x96x96,timestep:16"
    assert options.get("nv_multi_profile_enable", "1") == "1"


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx", "openvino_ep"])
def test_what_is_compiled_is_kept_in_the_cache_only(name: str) -> None:
    kept, lost = (str(PROVIDERS[name].options(Settings(cache=cache))) for cache in (CACHE, None))
    assert "/cache/" in kept
    assert "cache" not in lost.lower()


def test_those_who_take_the_rest_are_those_that_are_there() -> None:
    settings = Settings(device=2)
    found = chain("tensorrt", settings, ("tensorrt", "cpu"))
    assert [name for name, _ in found] == ["TensorrtExecutionProvider", "CPUExecutionProvider"]
    assert found[0][1]["device_id"] == "2"
    assert chain("cpu", settings, ("tensorrt", "cpu")) == [("CPUExecutionProvider", {})]


@pytest.mark.parametrize(
    ("settings", "bf16", "precision"),
    [
        (Settings(), True, "bf16"),
        (Settings(), False, "f32"),
        (Settings(precision="f32"), True, "f32"),
        (Settings(precision="bf16"), False, "bf16"),
    ],
)
def test_openvino_computes_in_bf16_where_the_processor_does(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, bf16: bool, precision: str
) -> None:
    monkeypatch.setattr(providers, "cpu_has_bf16", lambda: bf16)
    assert openvino_properties(settings)["INFERENCE_PRECISION_HINT"] == precision
    assert json.loads(PROVIDERS["openvino_ep"].options(settings)["load_config"]) == {
        "CPU": openvino_properties(settings)
    }


def test_openvino_is_told_its_threads_its_cores_and_its_cache() -> None:
    plain = openvino_properties(Settings(precision="f32"))
    asked = openvino_properties(Settings(precision="f32", threads=6, pinned=True, cache=CACHE))
    assert "INFERENCE_NUM_THREADS" not in plain
    assert "CACHE_DIR" not in plain
    assert (plain["ENABLE_CPU_PINNING"], asked["ENABLE_CPU_PINNING"]) == ("NO", "YES")
    assert (asked["INFERENCE_NUM_THREADS"], asked["CACHE_DIR"]) == ("6", "/cache/openvino")


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "somewhere"))
    assert default_cache() == tmp_path / "somewhere" / "aquatint"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "aquatint"


def test_without_a_place_for_it_there_is_no_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert default_cache() is None
    assert "set XDG_CACHE_HOME to a folder that can" in caplog.text


def test_a_session_is_kept_with_its_engine_beside_it() -> None:
    assert context_settings(Path("/cache/unet.onnx")) == {
        "ep.context_enable": "1",
        "ep.context_file_path": "/cache/unet.onnx",
        "ep.context_embed_mode": "0",
    }


@pytest.mark.parametrize(
    ("flags", "has"),
    [
        ("flags\t\t: fpu avx512_bf16 sse", True),
        ("flags : fpu sse\nflags : fpu amx_bf16 amx_tile", True),
        ("flags : fpu avx512f amx_tile avx512_bf16_not", False),
        ("", False),
    ],
)
def test_bf16_is_read_from_the_processors_flags(flags: str, has: bool) -> None:
    assert cpu_has_bf16(flags) is has


def test_bf16_of_this_machine_is_known() -> None:
    listing = Path("/proc/cpuinfo")
    assert cpu_has_bf16() is cpu_has_bf16(listing.read_text() if listing.exists() else "")


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert default_cache() is None
    assert "set XDG_CACHE_HOME to a folder" in caplog.text


def test_a_cpu_is_ready_for_any_size_after_one_call_and_a_gpu_is_not() -> None:
    ready = {name for name in (*PREFERENCE, "fake", "triton") if serves_any_size(name)}
    assert ready == {"openvino", "openvino_ep", "cpu"}
