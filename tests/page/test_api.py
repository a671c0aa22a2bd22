"""Masks over HTTP: what is asked and answered."""

import io
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from sam_jax.images.run_lengths import coco_run_lengths, decoded, from_text


@pytest.fixture
def client(server: Any) -> Any:
    with httpx.Client(base_url=f"{server.address}/api", timeout=60) as client:
        yield client


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def ask(client: httpx.Client, image: str, multimask: bool = True, **asked: Any) -> list[dict[str, Any]]:
    answer = client.post(f"/images/{image}/masks", json={"objects": [asked], "multimask": multimask})
    assert answer.status_code == 200, answer.text
    return answer.json()["objects"][0]["masks"]


def saved(mask: np.ndarray, **more: Any) -> dict[str, Any]:
    masks = [{**coco_run_lengths(mask), "score": 0.9}]
    return {"id": 1, "name": "thing", "colour": 0, "points": [], "labels": [], "masks": masks, "chosen": 0, **more}


def test_what_answers_and_about_what(client: httpx.Client, server: Any) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    model = client.get("/model").json()
    assert model["name"] == "the small SAM"
    assert model["input_size"] == [256, 256]
    assert [image["id"] for image in client.get("/images").json()][:2] == server.ids
    image = client.get(f"/images/{server.ids[0]}").json()
    assert (image["width"], image["height"], image["name"]) == (512, 512, "scene-59.png")
    picture = Image.open(io.BytesIO(client.get(f"/images/{server.ids[0]}/picture?side=100").content))
    assert picture.size == (100, 100)


def test_a_prepared_image_says_so(client: httpx.Client, server: Any) -> None:
    assert client.post(f"/images/{server.ids[0]}/prepare").json()["prepared"]
    assert client.get(f"/images/{server.ids[0]}").json()["prepared"]


def test_masks_are_those_of_the_predictor(client: httpx.Client, server: Any) -> None:
    predictor = server.predictor
    predictor.set_image(server.scenes[0].image)
    clicks, box = {"points": [[352.5, 394.0], [300, 300]], "labels": [1, 0]}, [240, 180, 420, 340]
    rough = np.zeros((512, 512), bool)
    rough[330:450, 300:420] = True
    for asked, given in (
        ({**clicks, "box": box}, {**clicks, "boxes": box}),
        ({**clicks, "mask": coco_run_lengths(rough)}, {**clicks, "mask": rough}),
    ):
        for multimask in (True, False):
            answer = ask(client, server.ids[0], multimask, **asked)
            expected = predictor.predict(**given, multimask=multimask)
            np.testing.assert_allclose([mask["score"] for mask in answer], expected.scores, atol=1e-4)
            for mask, wanted in zip(answer, expected.masks, strict=True):
                assert iou(decoded(mask), wanted) > 0.999


def test_a_click_finds_the_object(client: httpx.Client, server: Any, truth: np.ndarray) -> None:
    best = max(ask(client, server.ids[0], points=[[352, 394]], labels=[1]), key=lambda mask: mask["score"])
    assert iou(decoded(best), truth) > 0.8


def test_many_who_ask_at_once_get_their_own(client: httpx.Client, server: Any) -> None:
    places = [[40 + 60 * (i % 8), 50 + 90 * (i // 8)] for i in range(24)]
    alone = [ask(client, server.ids[i % 2], points=[place], labels=[1]) for i, place in enumerate(places)]
    with ThreadPoolExecutor(12) as pool:
        together = list(
            pool.map(lambda pair: ask(client, server.ids[pair[0] % 2], points=[pair[1]], labels=[1]), enumerate(places))
        )
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose([m["score"] for m in one], [m["score"] for m in other], atol=1e-3)
    several = {"objects": [{"points": [place], "labels": [1]} for place in places[::2]]}
    answer = client.post(f"/images/{server.ids[0]}/masks", json=several).json()["objects"]
    for one, found in zip(alone[::2], answer, strict=True):
        np.testing.assert_allclose([m["score"] for m in one], [m["score"] for m in found["masks"]], atol=1e-3)


def test_everything_is_a_job(client: httpx.Client, server: Any) -> None:
    settings = {"points_per_side": 4, "pred_iou_thresh": 0.3, "stability_score_thresh": 0.3, "max_masks": 3}
    job = client.post(f"/images/{server.ids[0]}/everything", json=settings)
    assert job.status_code == 202
    job, shares = job.json(), []
    while job["state"] in ("waiting", "running"):
        time.sleep(0.05)
        job = client.get(f"/jobs/{job['id']}").json()
        shares.append(job["progress"])
    assert job["state"] == "done", job["problem"]
    assert shares == sorted(shares)
    assert job["progress"] == 1
    expected = server.predictor.generate(server.scenes[0].image, **settings, points_per_batch=16)
    assert [decoded(found["masks"][0]).sum() for found in job["objects"]] == [one["area"] for one in expected]


def test_a_job_can_be_stopped(client: httpx.Client, server: Any) -> None:
    jobs = [client.post(f"/images/{server.ids[0]}/everything", json={}).json() for _ in range(8)]
    assert client.post(f"/images/{server.ids[0]}/everything", json={}).status_code == 429
    for job in jobs:
        client.delete(f"/jobs/{job['id']}")
    until = time.monotonic() + 30
    while (states := {client.get(f"/jobs/{job['id']}").json()["state"] for job in jobs}) != {"cancelled"}:
        assert time.monotonic() < until, states
        time.sleep(0.1)


def test_an_upload_comes_and_goes(client: httpx.Client) -> None:
    file = io.BytesIO()
    Image.fromarray(np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3)).save(file, "PNG")
    added = client.post("/images?name=../../etc/passwd", content=file.getvalue())
    assert added.status_code == 201
    image = added.json()
    assert (image["width"], image["height"], image["uploaded"]) == (64, 48, True)
    again = client.post("/images?name=other", content=file.getvalue()).json()
    assert again["id"] == image["id"]
    assert len(ask(client, image["id"], points=[[10, 10]], labels=[1])) == 3
    assert client.delete(f"/images/{image['id']}").status_code == 204
    assert client.get(f"/images/{image['id']}").status_code == 404


def test_16_bit_tiff_files_are_images(client: httpx.Client) -> None:
    import tifffile

    file = io.BytesIO()
    tifffile.imwrite(file, np.arange(40 * 50, dtype=np.uint16).reshape(40, 50) * 20)
    image = client.post("/images?name=cells.tif", content=file.getvalue()).json()
    assert (image["width"], image["height"]) == (50, 40)
    client.delete(f"/images/{image['id']}")


def test_files_that_were_given_stay(client: httpx.Client, server: Any) -> None:
    assert client.delete(f"/images/{server.ids[0]}").status_code == 422


def test_objects_are_kept_and_exported(client: httpx.Client, server: Any) -> None:
    scene, image = server.scenes[1], server.ids[1]
    objects = [saved(mask, id=i + 1, name=f"kind {i % 2}", colour=i) for i, mask in enumerate(scene.masks[:3])]
    assert client.put(f"/images/{image}/objects", json={"objects": objects}).json()["has_objects"]
    kept = client.get(f"/images/{image}/objects").json()["objects"]
    assert [one["masks"] for one in kept] == [one["masks"] for one in objects]

    made = client.get(f"/images/{image}/export/coco")
    assert made.headers["content-disposition"] == 'attachment; filename="scene-7.json"'
    content = made.json()
    assert [category["name"] for category in content["categories"]] == ["kind 0", "kind 1"][: len(objects)]
    for annotation, mask in zip(content["annotations"], scene.masks, strict=False):
        assert (coco.decode(annotation["segmentation"]).astype(bool) == mask).all()
        assert annotation["area"] == mask.sum()
        np.testing.assert_allclose(annotation["bbox"], coco.toBbox(annotation["segmentation"]))

    labels = np.asarray(Image.open(io.BytesIO(client.get(f"/images/{image}/export/labels").content)))
    assert set(np.unique(labels)) <= set(range(len(objects) + 1))
    overlay = np.asarray(Image.open(io.BytesIO(client.get(f"/images/{image}/export/overlay").content)))
    changed = (overlay != scene.image).any(-1)
    assert not (changed & ~scene.masks[:3].any(0)).any()
    assert client.get("/export/coco").json()["annotations"]

    assert not client.put(f"/images/{image}/objects", json={"objects": []}).json()["has_objects"]
    assert client.get(f"/images/{image}/export/coco").status_code == 404


def test_several_images_are_exported_as_one_file(client: httpx.Client, server: Any) -> None:
    import zipfile

    for image, scene in zip(server.ids, server.scenes, strict=True):
        client.put(f"/images/{image}/objects", json={"objects": [saved(scene.masks[0])]})
    packed = zipfile.ZipFile(io.BytesIO(client.get("/export/labels").content))
    assert sorted(packed.namelist()) == ["scene-59_labels.png", "scene-7_labels.png"]
    for image in server.ids:
        client.put(f"/images/{image}/objects", json={"objects": []})


def test_run_lengths_are_read_as_pycocotools_reads_them() -> None:
    rng = np.random.default_rng(0)
    masks = [rng.random((37, 53)) < share for share in (0.01, 0.5, 0.99)]
    masks += [np.zeros((5, 7), bool), np.ones((5, 7), bool), np.kron(rng.random((4, 4)) < 0.5, np.ones((90, 70))) > 0]
    for mask in masks:
        assert (from_text(coco_run_lengths(mask)["counts"], mask.shape) == mask).all()


@pytest.mark.parametrize("counts", ["", "\0", "é", "o", "ooooooooooooooooo0", "99", "P9", "0" * 50, "`1"])
def test_bad_run_lengths_are_refused(counts: str) -> None:
    with pytest.raises(ValueError, match="run lengths"):
        from_text(counts, (4, 4))


def test_the_page_and_its_modules_are_served(server: Any) -> None:
    page = httpx.get(server.address)
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    static = Path(__file__).parents[2] / "sam_jax/page/static"
    for file in static.iterdir():
        assert httpx.get(f"{server.address}/static/{file.name}").content == file.read_bytes()
    assert "https://" not in json.dumps([file.read_text() for file in static.iterdir()]).replace("https://www.w3", "")
