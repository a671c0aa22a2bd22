"""The page's server with other families than SAM: what it answers is what their predictor says."""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_encoder
from PIL import Image
from random_model import family_model, random_variables
from starlette.testclient import TestClient

from sam_jax import Predictor
from sam_jax.encoders.config import VIT_TINY
from sam_jax.encoders.hiera import Hiera
from sam_jax.encoders.vit import ImageEncoder
from sam_jax.images.run_lengths import coco_run_lengths, decoded
from sam_jax.page import engine
from sam_jax.page.app import create_app
from sam_jax.train.data.scenes import draw_scene

SIZE = (60, 90)
VIT = dataclasses.replace(VIT_TINY, width=24, mlp_width=48, depth=1, global_blocks=(0,))
ENCODERS: dict[str, Any] = {
    "sam_hq": ImageEncoder(dataclasses.replace(VIT, early_feature=True)),
    "sam2": Hiera(dataclasses.replace(random_encoder.SMALL_HIERA, image_size=(128, 128))),
    "efficient_sam": ImageEncoder(dataclasses.replace(VIT, preprocessing="efficient_sam")),
}
ALL = {"points_per_side": 2, "pred_iou_thresh": 0, "stability_score_thresh": 0}


class Served(NamedTuple):
    """A server with one image."""

    client: TestClient
    predictor: Predictor
    image: str
    pixels: np.ndarray

    def masks(self, **asked: Any) -> Any:
        return self.client.post(f"/api/images/{self.image}/masks", json={"objects": [asked]})


@pytest.fixture(scope="module", params=ENCODERS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    model, encoder = family_model(request.param), ENCODERS[request.param]
    encoder_variables = random_encoder.random_variables(encoder, jnp.zeros((128, 128, 3)))
    predictor = Predictor(model, random_variables(model), encoder, jax.device_put(encoder_variables))
    folder: Path = tmp_path_factory.mktemp("page")
    pixels = draw_scene(1, SIZE).image
    Image.fromarray(pixels).save(folder / "scene.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "TOKENS", engine.TOKENS[-1:])  # few programs to compile
        patch.setattr(engine, "TOGETHER", (1,))
        app = create_app(predictor, [folder / "scene.png"], name="it", objects=folder / "kept", host="127.0.0.1")
        with TestClient(app, base_url="http://127.0.0.1") as client:
            yield Served(client, predictor, client.get("/api/images").json()[0]["id"], pixels)


def test_masks_are_those_of_the_predictor(served: Served) -> None:
    rough = np.zeros(SIZE, bool)
    rough[20:40, 30:60] = True
    clicks, box = {"points": [[40, 30], [10, 12]], "labels": [1, 0]}, [20, 10, 70, 50]
    questions = [(clicks, clicks), ({**clicks, "box": box}, {**clicks, "boxes": box})]
    with_mask = {**clicks, "mask": coco_run_lengths(rough)}
    if served.predictor.model.config.efficient_sam:
        refused = served.masks(**with_mask)
        assert (refused.status_code, "takes no mask prompts" in refused.json()["detail"]) == (422, True)
    else:
        questions.append((with_mask, {**clicks, "mask": rough}))
    served.predictor.set_image(served.pixels)
    for asked, given in questions:
        answer = served.masks(**asked).json()["objects"][0]["masks"]
        wanted = served.predictor.predict(**given)
        np.testing.assert_allclose([mask["score"] for mask in answer], wanted.scores, atol=1e-4)
        for mask, pixels in zip(answer, wanted.masks, strict=True):
            assert (decoded(mask) != pixels).sum() <= 2


def test_everything_is_what_generate_finds(served: Served) -> None:
    job = served.client.post(f"/api/images/{served.image}/everything", json=ALL).json()
    while job["state"] in ("waiting", "running"):
        time.sleep(0.05)
        job = served.client.get(f"/api/jobs/{job['id']}").json()
    assert job["state"] == "done", job["problem"]
    wanted = served.predictor.generate(served.pixels, **ALL, points_per_batch=16)
    found = [one["masks"][0] for one in job["objects"]]
    assert found
    for mask, record in zip(found, wanted, strict=True):
        assert mask["score"] == pytest.approx(record["predicted_iou"], abs=1e-4)
        assert (decoded(mask) != record["segmentation"]).sum() <= 2


def test_what_is_found_is_exported(served: Served) -> None:
    clicks = {"points": [[40, 30]], "labels": [1]}
    masks = served.masks(**clicks).json()["objects"][0]["masks"]
    one = {"id": 1, "name": "thing", "colour": 0, **clicks, "masks": masks}
    served.client.put(f"/api/images/{served.image}/objects", json={"objects": [one]}).raise_for_status()
    (made,) = served.client.get(f"/api/images/{served.image}/export/coco").json()["annotations"]
    assert made["area"] == decoded(masks[0]).sum()
