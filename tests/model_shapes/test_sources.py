"""Where a checkpoint is looked for, in which order, and what is said where it is not found or broken."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import huggingface_hub.constants
import pytest
from fresh_python import printed_by

from tilelang_gemm_wrapper.models import config_directory, shapes_of, weight_shapes

from .checkpoints import LLAMA, QWEN3, tensors_of, write_family

ID, COMMIT = "some-org/Some-Model-FP8", "0123456789abcdef0123456789abcdef01234567"
SHIPPED_ID = "Qwen/Qwen3-0.6B-FP8"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache."""
    directory = tmp_path / "cache"
    directory.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(directory))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return directory


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("model_info", "hf_hub_download", "get_safetensors_metadata"):
        monkeypatch.setattr(huggingface_hub, name, _refuse_network)


def _refuse_network(*_: object, **__: object) -> None:
    raise ConnectionError("no route to the hub")


def put_in_cache(cache: Path, model_id: str = ID, revision: str = "main") -> Path:
    """A snapshot as the library lays it out: links into blobs; returns its directory."""
    repository = cache / ("models--" + model_id.replace("/", "--"))
    snapshot = repository / "snapshots" / COMMIT
    files = write_family(cache.parent / "files", QWEN3, shards=2)
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(files.iterdir())):
        blob = repository / "blobs" / f"{number:064}"
        shutil.move(file, blob)
        (snapshot / file.name).symlink_to(blob)
    (repository / "refs").mkdir()
    (repository / "refs" / revision).write_text(COMMIT)
    return snapshot


def fake_hub(monkeypatch: pytest.MonkeyPatch, directory: Path) -> list[str]:
    """The hub has LLAMA, and gives its config and headers alone. Returns what was asked, as it is asked."""
    asked: list[str] = []
    dtypes = {"torch.float8_e4m3fn": "F8_E4M3", "torch.bfloat16": "BF16"}
    tensors = {
        name: SimpleNamespace(dtype=dtypes[str(tensor.dtype)], shape=list(tensor.shape))
        for name, tensor in tensors_of(LLAMA).items()
    }
    halves = [dict(list(tensors.items())[half::2]) for half in range(2)]
    files = {f"{half}": SimpleNamespace(tensors=part) for half, part in enumerate(halves)}

    def model_info(model_id: str, *, revision: str | None, timeout: float) -> SimpleNamespace:
        asked.append(f"{model_id} at {revision}")
        assert 0 < timeout <= 10
        return SimpleNamespace(sha=COMMIT)

    def hf_hub_download(model_id: str, filename: str, *, revision: str, etag_timeout: float) -> str:
        asked.append(f"{filename} at {revision}")
        path = directory / filename
        path.write_text(json.dumps(LLAMA.config))
        return str(path)

    def get_safetensors_metadata(model_id: str, *, revision: str) -> SimpleNamespace:
        asked.append(f"headers at {revision}")
        return SimpleNamespace(files_metadata=files)

    for function in (model_info, hf_hub_download, get_safetensors_metadata):
        monkeypatch.setattr(huggingface_hub, function.__name__, function)
    return asked


# Directories


def test_a_directory_may_be_given_as_text_and_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_family(tmp_path / ID, QWEN3)
    monkeypatch.chdir(tmp_path)
    for given in (ID, f"./{ID}", str(tmp_path / ID)):
        assert weight_shapes(given).layers == QWEN3.layers[1]


def test_a_directory_of_other_things_does_not_hide_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "qwen3-4b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert weight_shapes("qwen3-4b").shapes == shapes_of("qwen3-4b")


def test_safetensors_files_of_any_name_are_read_where_there_is_no_index(tmp_path: Path):
    write_family(tmp_path, QWEN3, shards=2)
    (tmp_path / INDEX).unlink()
    assert weight_shapes(tmp_path).layers == QWEN3.layers[1]


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _name_one_more_tensor(file: Path) -> None:
    index = json.loads(file.read_text())
    index["weight_map"]["model.extra.weight"] = "model-00001-of-00002.safetensors"
    file.write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damaged", "damage", "message"),
    [
        ("config.json", Path.unlink, r"config\.json not found in .*"),
        ("config.json", lambda file: file.write_text("{"), r"config\.json cannot be read \(JSONDecodeError"),
        ("config.json", lambda file: file.write_text("[]"), r"config\.json holds no JSON object"),
        (
            "config.json",
            lambda file: file.write_text("[" * 10**5),
            r"config\.json cannot be read \(Recursion",
        ),
        (INDEX, lambda file: file.write_text("{}"), "has no weight_map"),
        (INDEX, lambda file: file.write_text('{"weight_map": {"a": 5}}'), "places a in 5, expected a file's"),
        (INDEX, _name_one_more_tensor, r"no tensor model\.extra\.weight, which .* places in model-00001-of"),
        (
            "model-00002-of-00002.safetensors",
            Path.unlink,
            r"lacks 1 of the 2 files that .*, such as model-00002-of-00002\.safetensors; finish the download",
        ),
        (
            "model-00001-of-00002.safetensors",
            _cut,
            r"00001-of-00002\.safetensors is no whole safetensors file",
        ),
        (
            "model-00001-of-00002.safetensors",
            lambda file: file.write_bytes(b""),
            r"00001-of-00002\.safetensors is no whole safetensors file",
        ),
    ],
)
def test_a_damaged_directory_is_refused_with_the_file(
    tmp_path: Path, damaged: str, damage: Callable[[Path], object], message: str
):
    write_family(tmp_path, QWEN3, shards=2)
    damage(tmp_path / damaged)
    with pytest.raises(ValueError, match=message):
        weight_shapes(tmp_path)


def test_shards_without_an_index_must_be_all_there(tmp_path: Path):
    write_family(tmp_path, QWEN3, shards=3)
    (tmp_path / INDEX).unlink()
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match="has 2 of 3 shards and no model"):
        weight_shapes(tmp_path)


def test_a_directory_without_weights_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="has no safetensors file"):
        weight_shapes(tmp_path)


@pytest.mark.parametrize("given", ["./nowhere", "/nowhere/at/all", "~nobody/models/x", Path("nowhere")])
def test_a_missing_directory_is_said_without_asking_anyone(given: str | Path):
    with pytest.raises(ValueError, match="is no directory; give one with"):
        weight_shapes(given)


def test_a_file_or_a_folder_without_config_is_said_to_be_that(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    write_family(tmp_path / "model", QWEN3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"That is a file, where the directory with its config\.json is"):
        weight_shapes("model/config.json")
    with pytest.raises(ValueError, match=r"The directory of that name has no config\.json, and tried"):
        weight_shapes("empty")
    with pytest.raises(ValueError, match="the model has no name; give a directory or a model id"):
        weight_shapes("")


# The cache


def test_a_cached_model_is_read_without_the_hub(cache: Path):
    put_in_cache(cache)
    found = weight_shapes(ID, 2)
    assert (found.layers, found.source, found.model) == (QWEN3.layers[2], "Hugging Face cache", ID)


def test_a_cached_revision_is_found_by_its_name_and_by_its_commit(cache: Path):
    put_in_cache(cache, revision="v2")
    assert weight_shapes(ID, revision="v2").layers == weight_shapes(ID, revision=COMMIT).layers
    with pytest.raises(ValueError, match=r"cache .* has no config\.json of it; "):
        weight_shapes(ID)


def test_a_cache_without_all_shards_is_said_and_the_next_source_serves(
    cache: Path, caplog: pytest.LogCaptureFixture
):
    snapshot = put_in_cache(cache, SHIPPED_ID)
    (snapshot / "model-00001-of-00002.safetensors").unlink()
    with caplog.at_level(logging.INFO):
        found = weight_shapes(SHIPPED_ID, offline=True)
    assert (found.shapes, found.source) == (shapes_of("qwen3-0.6b"), "shipped shape file qwen3-0.6b.json")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "lacks 1 of the 2 files" in record.getMessage()


# The hub


def test_the_hub_gives_config_and_headers_of_one_commit(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = fake_hub(monkeypatch, tmp_path)
    found = weight_shapes(ID, 4, revision="v2")
    assert (found.layers, found.source) == (LLAMA.layers[4], "Hugging Face hub")
    assert found.not_covered == ("kept in BF16: lm_head (1024, 512)",)
    assert asked == [f"{ID} at v2", f"config.json at {COMMIT}", f"headers at {COMMIT}"]


def test_the_hub_comes_before_the_shipped_file(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake_hub(monkeypatch, tmp_path)
    assert weight_shapes(SHIPPED_ID).source == "Hugging Face hub"


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_offline_leaves_the_hub_out(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str):
    asked = fake_hub(monkeypatch, tmp_path)
    if by == "environment":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert weight_shapes(SHIPPED_ID, offline=by == "argument").source.startswith("shipped shape file")
    assert asked == []


# Nowhere, or among the shipped files


def test_an_unreachable_hub_leaves_the_shipped_file(cache: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        assert weight_shapes(SHIPPED_ID.lower()).shapes == shapes_of("qwen3-0.6b")
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "ConnectionError: no route to the hub" in record.getMessage()


def test_an_unknown_model_names_all_that_was_tried(cache: Path):
    with pytest.raises(ValueError) as caught:
        weight_shapes(ID)
    text = str(caught.value)
    assert text.startswith(f"{ID}: its shapes were not found")
    places = [
        f"(1) the Hugging Face cache {cache} has no config.json",
        "(2) the Hugging Face hub did not give it (ConnectionError: no route to the hub)",
        "(3) no shipped shape file stands for it; there are deepseek-v3, ",
        f"hf download {ID}",
    ]
    assert sorted(places, key=text.find) == places and all(place in text for place in places)


def test_an_unknown_model_offline_says_that_the_hub_was_not_asked(
    cache: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(ValueError, match="was not asked, because of offline=True"):
        weight_shapes(ID, offline=True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="was not asked, because HF_HUB_OFFLINE is set"):
        weight_shapes(ID)


def test_a_revision_is_not_taken_from_a_shipped_file(cache: Path):
    with pytest.raises(ValueError, match="shipped shape files know no revisions, and v2 was asked for"):
        weight_shapes(SHIPPED_ID, revision="v2")


def test_a_name_that_no_hub_would_take_is_refused(cache: Path):
    with pytest.raises(ValueError, match="is no Hugging Face id"):
        weight_shapes("some..org/model--x")


def test_without_the_extra_shipped_files_serve_and_the_rest_names_it(tmp_path: Path):
    write_family(tmp_path, QWEN3)
    code = f"""
import sys
for name in ("torch", "numpy", "safetensors", "huggingface_hub", "transformers"):
    sys.modules[name] = None  # `import name` then raises
from tilelang_gemm_wrapper.models import config_directory, shapes_of, weight_shapes
assert weight_shapes({SHIPPED_ID!r}).shapes == shapes_of("qwen3-0.6b")
for model in ({str(tmp_path)!r}, {ID!r}):
    try:
        weight_shapes(model)
    except ValueError as error:
        print(error)
"""
    directory, unknown = printed_by(code).splitlines()
    install = "pip install 'tilelang-gemm-wrapper[models]'"
    assert f"reading safetensors headers needs safetensors: {install}" in directory
    assert f"the Hugging Face cache needs huggingface_hub: {install}" in unknown
    assert f"the Hugging Face hub needs huggingface_hub: {install}" in unknown


# The directory of config.json, which is all that an engine needs


def test_config_alone_is_found_in_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / ID).mkdir(parents=True)
    (tmp_path / ID / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for given in (ID, f"./{ID}", str(tmp_path / ID), tmp_path / ID):
        assert config_directory(given).resolve() == tmp_path / ID


def test_config_is_found_in_the_cache_without_weights(cache: Path):
    snapshot = put_in_cache(cache)
    for file in snapshot.glob("*.safetensors*"):
        file.unlink()
    assert config_directory(ID) == snapshot


def test_config_alone_is_asked_of_the_hub(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = fake_hub(monkeypatch, tmp_path)
    assert config_directory(ID) == tmp_path
    assert asked == [f"{ID} at None", f"config.json at {COMMIT}"]


@pytest.mark.parametrize(
    ("model", "reasons"),
    [
        (ID, ["cache .* has no config.json of it", "hub did not give it .*no route to the hub"]),
        ("./nowhere", [r"config\.json not found in nowhere"]),
        ("broken", [r"config\.json cannot be read"]),
        ("some..org/model--x", ["is no Hugging Face id"]),
        ("qwen3-4b", ["a shape file of this package, .* needs the whole config.json"]),
    ],
)
def test_why_there_is_no_config_is_told(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, reasons: list[str]
):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"^{model}.*{'.*'.join(reasons)}.* directory"):
        config_directory(model)
