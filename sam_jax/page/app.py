"""The server's addresses: what is asked for in each, and what is answered."""

import asyncio
import contextlib
import io
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Annotated, Any, TypeVar

import jax
import numpy as np
from fastapi import APIRouter, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from jaxtyping import Bool
from PIL import Image
from starlette.concurrency import run_in_threadpool

from sam_jax.automatic.config import AutomaticConfig
from sam_jax.batch.select import select_masks
from sam_jax.decoder.model import MaskPrediction
from sam_jax.images.pixels import EncodedImage, build_prompts, full_size_masks
from sam_jax.images.run_lengths import coco_run_lengths, from_text
from sam_jax.images.size import Size
from sam_jax.page import messages
from sam_jax.page.engine import Engine
from sam_jax.page.exports import COLOURS, Kind, colour_of, export
from sam_jax.page.exports import Annotated as AnnotatedImage
from sam_jax.page.gallery import MOST_BYTES, FullError, Gallery, StoredImage
from sam_jax.page.guard import Guard
from sam_jax.page.jobs import BusyError, Job, Jobs
from sam_jax.page.shelf import Shelf
from sam_jax.predictor import Predictor

STATIC = Path(__file__).parent / "static"

GONE = 499
"""The status for a client that did not wait; nobody sees it."""

Result = TypeVar("Result")

PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": messages.Problem, "description": why}
    for status, why in {
        400: "The body is no JSON",
        404: "There is nothing of this id",
        422: "The request means nothing, or asks for too much",
    }.items()
}


_UPLOADS: Any = {
    413: {"model": messages.Problem, "description": "The file has too many bytes"},
    507: {"model": messages.Problem, "description": "There are too many uploads"},
}
_BUSY: Any = {429: {"model": messages.Problem, "description": "Too many jobs are waiting"}}
_BYTES = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
_PICTURE: Any = {200: {"content": {"image/jpeg": {}}, "description": "The picture"}}
_FILE: Any = {
    200: {
        "content": {"application/json": {}, "image/png": {}, "application/zip": {}},
        "description": "JSON for COCO; a PNG, or for several images a ZIP of them",
    }
}


def create_app(
    predictor: Predictor, files: Iterable[Path], *, name: str, objects: Path, host: str, token: str | None = None
) -> FastAPI:
    """Return the server's application: the page, and the API that it and other programs use.

    Args:
      predictor: what answers.
      files: images to begin with.
      name: of the model, for people to read.
      objects: the folder where objects are kept.
      host: the address that it is served at.
      token: what everybody has to show; None for none.
    """
    uploads = Path(tempfile.mkdtemp(prefix="sam-jax-page-"))
    engine = Engine(predictor)
    api = _Api(engine, Gallery(files, uploads), Shelf(objects), name)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        api.jobs.close()
        engine.close()
        shutil.rmtree(uploads, ignore_errors=True)

    app = FastAPI(
        title="sam-jax",
        description="Masks of objects in images, by clicks, boxes and rough masks, or of everything.",
        openapi_url="/api/openapi.json",
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.include_router(api.router())
    app.add_middleware(Guard, host=host, token=token)
    app.add_exception_handler(RequestValidationError, _explain)
    app.add_exception_handler(ValueError, _refuse)

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    app.mount("/static", StaticFiles(directory=STATIC))
    return app


class _Api:
    """What each address does."""

    def __init__(self, engine: Engine, gallery: Gallery, shelf: Shelf, name: str) -> None:
        self.engine, self.gallery, self.shelf, self.name = engine, gallery, shelf, name
        self.jobs = Jobs(engine)

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/api", responses=PROBLEMS)
        router.get("/health")(self.health)
        router.get("/model")(self.model)
        router.get("/images")(self.images)
        router.post("/images", status_code=201, responses=_UPLOADS, openapi_extra=_BYTES)(self.add_image)
        router.get("/images/{image_id}")(self.image)
        router.delete("/images/{image_id}", status_code=204)(self.remove_image)
        router.get("/images/{image_id}/picture", responses=_PICTURE, response_class=Response)(self.picture)
        router.post("/images/{image_id}/prepare")(self.prepare)
        router.post("/images/{image_id}/masks")(self.masks)
        router.post("/images/{image_id}/everything", status_code=202, responses=_BUSY)(self.everything)
        router.get("/images/{image_id}/objects")(self.objects)
        router.put("/images/{image_id}/objects")(self.keep_objects)
        router.get("/images/{image_id}/export/{kind}", responses=_FILE, response_class=Response)(self.export_image)
        router.get("/export/{kind}", responses=_FILE, response_class=Response)(self.export_all)
        router.get("/jobs/{job_id}")(self.job)
        router.delete("/jobs/{job_id}")(self.stop_job)
        return router

    def health(self) -> messages.Health:
        """Say that the server is there."""
        return messages.Health()

    def model(self) -> messages.ModelInfo:
        """Say what answers, and whether it is ready."""
        predictor = self.engine.predictor
        leaves = jax.tree.leaves((predictor.variables, predictor.encoder_variables))
        return messages.ModelInfo(
            name=self.name,
            parameters=sum(leaf.size for leaf in leaves),
            input_size=list(predictor.model.config.image_size),
            waiting_for=self.engine.waiting_for(),
            colours=["#{:02x}{:02x}{:02x}".format(*colour_of(i)) for i in range(COLOURS)],
        )

    def images(self) -> list[messages.ImageInfo]:
        """List all images."""
        return [messages.ImageInfo(**self._info(image)) for image in self.gallery.images()]

    async def add_image(
        self, request: Request, name: Annotated[str, Query(min_length=1, max_length=200)] = "image"
    ) -> messages.SizedImage:
        """Add an image: the body is the file's bytes, the name is for people."""
        with tempfile.TemporaryDirectory(prefix="sam-jax-upload-", dir=self.gallery.uploads) as folder:
            file = Path(folder, "upload")
            await _write(request, file)
            try:
                image = await run_in_threadpool(self.gallery.add, name, file)
            except FullError as error:
                raise HTTPException(507, str(error)) from error
        return await run_in_threadpool(self.image, image.id)

    def image(self, image_id: str) -> messages.SizedImage:
        """Return an image's size and state."""
        image = self._image(image_id)
        height, width = image.size()
        prepared = self.engine.is_prepared(image)
        return messages.SizedImage(**self._info(image), width=width, height=height, prepared=prepared)

    def remove_image(self, image_id: str) -> None:
        """Remove an uploaded image. Its objects stay: they are there again if it is."""
        self._image(image_id)
        self.gallery.remove(image_id)

    def picture(self, image_id: str, side: Annotated[int, Query(ge=16, le=8192)] = 8192) -> Response:
        """Return an image as JPEG, its longest side at most `side` pixels."""
        picture = Image.fromarray(self._image(image_id).pixels())
        picture.thumbnail((side, side))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=92)
        return Response(file.getvalue(), media_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400"})

    async def prepare(self, image_id: str, request: Request) -> messages.SizedImage:
        """Make an image ready for clicks, and return when it is."""
        await _unless_gone(request, _of(self.engine.prepare(self._image(image_id))))
        return await run_in_threadpool(self.image, image_id)

    async def masks(self, image_id: str, question: messages.Question, request: Request) -> messages.Answer:
        """Return the masks of objects. A client that closes the connection is not waited for."""
        image = self._image(image_id)

        async def answer() -> messages.Answer:
            encoded = await _of(self.engine.prepare(image))
            decoded = [await run_in_threadpool(self._ask, encoded, asked) for asked in question.objects]
            try:
                results = [await asyncio.wrap_future(future) for future in decoded]
            finally:
                for future in decoded:
                    future.cancel()
            return await run_in_threadpool(self._answer, encoded, results, question.multimask)

        return await _unless_gone(request, answer())

    def everything(self, image_id: str, asked: messages.Everything) -> messages.JobStatus:
        """Begin to look for everything in an image. The job says how far it is."""
        settings = AutomaticConfig(**asked.model_dump(), points_per_batch=16, output_mode="coco_rle")
        try:
            return _status(self.jobs.start(self._image(image_id), settings))
        except BusyError as error:
            raise HTTPException(429, str(error)) from error

    def job(self, job_id: str) -> messages.JobStatus:
        """Say how far a job is; when it is done, return what it found."""
        return _status(self._job(job_id))

    def stop_job(self, job_id: str) -> messages.JobStatus:
        """Stop a job."""
        job = self._job(job_id)
        job.stop()
        return _status(job)

    def objects(self, image_id: str) -> messages.SavedObjects:
        """Return the objects that are kept of an image."""
        return messages.SavedObjects(objects=self.shelf.read(self._image(image_id)))

    def keep_objects(self, image_id: str, saved: messages.SavedObjects) -> messages.ImageInfo:
        """Keep these objects of an image in the place of those before."""
        image = self._image(image_id)
        self.shelf.write(image, saved, image.size())
        return messages.ImageInfo(**self._info(image))

    def export_image(self, image_id: str, kind: Kind) -> Response:
        """Return the objects of an image as a file."""
        image = self._image(image_id)
        return _file(kind, [(image, self.shelf.read(image))])

    def export_all(self, kind: Kind) -> Response:
        """Return the objects of all images that have some as a file."""
        return _file(
            kind, [(image, self.shelf.read(image)) for image in self.gallery.images() if self.shelf.has(image)]
        )

    def _image(self, image_id: str) -> StoredImage:
        try:
            return self.gallery[image_id]
        except KeyError:
            raise HTTPException(404, "There is no image of this id.") from None

    def _job(self, job_id: str) -> Job:
        try:
            return self.jobs[job_id]
        except KeyError:
            raise HTTPException(404, "There is no job of this id.") from None

    def _info(self, image: StoredImage) -> dict[str, Any]:
        return {
            "id": image.id,
            "name": image.name,
            "uploaded": image.uploaded,
            "has_objects": self.shelf.has(image),
        }

    def _ask(self, image: EncodedImage, asked: messages.Asked) -> Future[MaskPrediction]:
        given: dict[str, Any] = {"boxes": asked.box}
        if asked.points:
            given |= {"points": asked.points, "labels": asked.labels}
        if asked.mask:
            given["mask"] = _pixels(asked.mask, image.original_size)
        prompts, _ = build_prompts(self.engine.predictor.model.config, image, given)
        return self.engine.decode(image, prompts)

    def _answer(self, image: EncodedImage, predictions: list[MaskPrediction], multimask: bool) -> messages.Answer:
        found = []
        for prediction in predictions:
            logits, scores = (np.asarray(x, np.float32) for x in select_masks(prediction, multimask))
            runs = map(coco_run_lengths, full_size_masks(self.engine.predictor.model.config, image, logits))
            masks = [messages.Mask(**run, score=float(score)) for run, score in zip(runs, scores, strict=True)]
            found.append(messages.Found(masks=masks))
        return messages.Answer(objects=found)


def _pixels(mask: messages.RunLengths, size: Size) -> Bool[np.ndarray, "height width"]:
    if tuple(mask.size) != size:
        raise ValueError(f"A mask of {mask.size} is not of the image, which is {list(size)}.")
    return from_text(mask.counts, size)


def _status(job: Job) -> messages.JobStatus:
    state, future = job.state, job.future
    objects = problem = None
    if state == "done" and future is not None:
        objects = [
            messages.Found(masks=[messages.Mask(**record["segmentation"], score=record["predicted_iou"])])
            for record in future.result()
        ]
    if state == "failed" and future is not None:
        problem = str(future.exception())
    progress = 1.0 if state == "done" else job.progress
    return messages.JobStatus(
        id=job.id, image=job.image, state=state, progress=progress, problem=problem, objects=objects
    )


def _file(kind: Kind, annotated: list[AnnotatedImage]) -> Response:
    if not any(objects for _, objects in annotated):
        raise HTTPException(404, "There are no objects to export.")
    made = export(kind, annotated)
    plain = "".join(character if character.isalnum() or character in "-_." else "_" for character in made.name)
    headers = {"Content-Disposition": f'attachment; filename="{plain.encode("ascii", "replace").decode()}"'}
    return Response(made.content, media_type=made.media_type, headers=headers)


async def _write(request: Request, file: Path) -> None:
    """Write a body to a file within the bound."""
    with file.open("wb") as stream:
        async for chunk in request.stream():
            if stream.tell() + len(chunk) > MOST_BYTES:
                raise HTTPException(413, f"An image file has at most {MOST_BYTES:,} bytes.")
            stream.write(chunk)


def _of(future: Future[Result]) -> Awaitable[Result]:
    """Wait for a future that others may wait for, too: not to wait any more does not cancel it."""
    return asyncio.shield(asyncio.wrap_future(future))


async def _unless_gone(request: Request, answer: Awaitable[Result]) -> Result:
    """Wait for an answer, unless the client does not."""
    answered = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({answered, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answered.done():
            raise HTTPException(GONE, "The client has gone.")
        return answered.result()
    finally:
        answered.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _explain(request: Request, error: Exception) -> JSONResponse:
    """Say what is wrong with a request, without repeating it: it may be large, or hold what JSON cannot."""
    assert isinstance(error, RequestValidationError)
    first, *more = error.errors()
    place = ".".join(str(part) for part in first["loc"] if part != "body")[:200]
    text = f"{place}: {first['msg']}" if place else first["msg"]
    rest = f" ({len(more)} more)" if more else ""
    return JSONResponse({"detail": f"{text}{rest}"[:500]}, 422)


async def _refuse(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)[:500]}, 422)
