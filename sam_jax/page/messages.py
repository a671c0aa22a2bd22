"""What is sent and answered, with every bound on it: FastAPI checks requests by it, and describes it in OpenAPI."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST_POINTS = 32
"""Clicks on an object."""

MOST_TOGETHER = 32
"""Objects in one request for masks."""

MOST_OBJECTS = 1000
"""Of an image."""

MOST_RUNS = 4 << 20
"""Characters of a mask's run lengths."""

Number = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Point = Annotated[list[Number], Field(min_length=2, max_length=2, description="(x, y) in pixels of the image")]
Box = Annotated[list[Number], Field(min_length=4, max_length=4, description="(x0, y0, x1, y1) in pixels of the image")]
Label = Annotated[Literal[0, 1], Field(description="1 foreground, 0 background")]
Side = Annotated[int, Field(ge=1, le=1 << 16)]


class Message(BaseModel):
    """A message of known fields."""

    model_config = ConfigDict(extra="forbid")


class Problem(Message):
    """Why a request was not answered."""

    detail: str


class RunLengths(Message):
    """A mask as COCO's compressed run lengths; pycocotools reads it."""

    size: Annotated[list[Side], Field(min_length=2, max_length=2, description="height and width")]
    counts: Annotated[str, Field(max_length=MOST_RUNS)]


class Prompt(Message):
    """Clicks, a box and a rough mask of one object, each in pixels of the image."""

    points: Annotated[list[Point], Field(max_length=MOST_POINTS)] = []
    labels: Annotated[list[Label], Field(max_length=MOST_POINTS)] = []
    box: Box | None = None
    mask: RunLengths | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> "Prompt":
        if len(self.points) != len(self.labels):
            raise ValueError(f"every point has one label, but there are {len(self.points)} and {len(self.labels)}")
        if self.box is not None and not (self.box[0] < self.box[2] and self.box[1] < self.box[3]):
            raise ValueError("a box is (x0, y0, x1, y1) with x0 < x1 and y0 < y1")
        return self


class Asked(Prompt):
    """What asks for one object: at least one of points, a box and a mask."""

    @model_validator(mode="after")
    def _asks(self) -> "Asked":
        if not self.points and self.box is None and self.mask is None:
            raise ValueError("points, a box or a mask must be given")
        return self


class Question(Message):
    """Objects to find masks of."""

    objects: Annotated[list[Asked], Field(min_length=1, max_length=MOST_TOGETHER)]
    multimask: bool = Field(True, description="three masks for each object, for ambiguous prompts; else the one mask")


class Mask(RunLengths):
    """A mask and the IoU that the model expects of it, which can exceed 1."""

    score: Number


class Found(Message):
    """The masks of one object."""

    masks: list[Mask]


class Answer(Message):
    """The objects of a question, in its order."""

    objects: list[Found]


class SavedObject(Prompt):
    """An object as the page keeps it: what asked for it, its masks, and which of them is meant."""

    id: Annotated[int, Field(ge=0, lt=1 << 31)]
    name: Annotated[str, Field(max_length=100)]
    colour: Annotated[int, Field(ge=0, lt=1 << 16, description="index into the model's `colours`, which repeat")]
    masks: Annotated[list[Mask], Field(min_length=1, max_length=4)]
    chosen: Annotated[int, Field(ge=0, le=3)] = 0

    @model_validator(mode="after")
    def _is_chosen(self) -> "SavedObject":
        if self.chosen >= len(self.masks):
            raise ValueError(f"mask {self.chosen} is chosen of {len(self.masks)}")
        return self


class SavedObjects(Message):
    """All objects of an image."""

    objects: Annotated[list[SavedObject], Field(max_length=MOST_OBJECTS)]


class Everything(Message):
    """How to look for everything in an image: `sam_jax.AutomaticConfig` has the same names."""

    points_per_side: Annotated[int, Field(ge=1, le=64)] = 32
    pred_iou_thresh: Annotated[float, Field(ge=0, le=1)] = 0.88
    stability_score_thresh: Annotated[float, Field(ge=0, le=1)] = 0.95
    min_mask_region_area: Annotated[int, Field(ge=0, le=1 << 24)] = 0
    max_masks: Annotated[int, Field(ge=1, le=MOST_OBJECTS)] = MOST_OBJECTS


class JobStatus(Message):
    """How far a job is. When it is done, `objects` has a mask each."""

    id: str
    image: str
    state: Literal["waiting", "running", "done", "failed", "cancelled"]
    progress: Annotated[float, Field(ge=0, le=1)]
    problem: str | None = None
    objects: list[Found] | None = None


class ImageInfo(Message):
    """An image, and whether objects are kept of it."""

    id: str
    name: str
    uploaded: bool
    has_objects: bool


class SizedImage(ImageInfo):
    """An image with its size in pixels, and whether clicks on it are answered at once."""

    width: int
    height: int
    prepared: bool


class ModelInfo(Message):
    """What answers: `waiting_for` says what is being made ready, and is null when everything is."""

    name: str
    parameters: int
    input_size: list[int]
    waiting_for: str | None
    most_points: int = MOST_POINTS
    colours: list[str]


class Health(Message):
    """That the server is there."""

    status: Literal["ok"] = "ok"
