"""Batches of images and objects: deterministic, split over processes, resumable.

Targets are as large as the low-res logits, or a whole number of times as large (`target_scale`), such as the input
frame. Each of their pixels is the *share* of what it covers that the object has; 0.5 and more is in the object.
"""

import dataclasses
import functools

import grain
import jax
import numpy as np
from absl import flags
from flax import struct
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array

from sam_jax.config import SamConfig
from sam_jax.decoder.features import Features
from sam_jax.encoders.config import Preprocessing
from sam_jax.images.preprocess import prepare, size_in_frame
from sam_jax.images.resize import coverage
from sam_jax.images.size import Size
from sam_jax.prompts import AnyArray
from sam_jax.train.config import Augmentation
from sam_jax.train.data.augment import augmented
from sam_jax.train.data.examples import Example, Source


@struct.dataclass
class Batch:
    """Images with the same number of objects each; those of an image share its embedding. `*b` is empty for an item.

    Attributes:
      images: padded input frames, normalised; None where there are embeddings.
      embeddings: of the images, channels last, all maps where the decoder takes several; None where the encoder is to
        run.
      targets: share of each pixel that is in the object; of the part of it that is in the image.
      weight: share of each pixel that is in the image: 0 on padding.
      valid: False for an object that exists only to fill up the number, or is too small to fill half a pixel; True for
        a class, also where the image has none of it.
      input_size: height and width of the resized image in its frame.
    """

    images: Float[AnyArray, "*b fh fw 3"] | None
    embeddings: Features | None
    targets: Float[AnyArray, "*b o ty tx"]
    weight: Float[AnyArray, "*b ty tx"]
    valid: Bool[AnyArray, "*b o"]
    input_size: Int[AnyArray, "*b 2"]


def batches(
    source: Source,
    config: SamConfig,
    *,
    images: int,
    objects: int | None,
    seed: int = 0,
    workers: int = 0,
    preprocessing: Preprocessing = "sam",
    frame_size: Size | None = None,
    target_scale: int = 1,
    augmentation: Augmentation = Augmentation(),  # noqa: B008 - frozen
    process: int | None = None,
    processes: int | None = None,
) -> "grain.DatasetIterator[Batch]":
    """Return an endless iterator of this process's share of the batches.

    Images are in a new order each time they are through, and objects are drawn anew. All processes together see the
    same sequence of images and objects, however many they are. `get_state` and `set_state` resume at the next batch, on
    the same arguments.

    Args:
      source: the examples.
      config: settings of the decoder, which say how large frames and targets are.
      images: images in a batch, over all processes.
      objects: objects of each image; chosen where there are more, filled up where there are fewer. None where examples
        have classes: all are taken, in their order.
      seed: of the order and the choices.
      workers: processes that make batches; 0 for threads of this one. End them with the iterator's `close`.
      preprocessing: that of the encoder which is to run (`encoder.config.preprocessing`).
      frame_size: height and width of that encoder's frame (`encoder.config.image_size`); the decoder's if not given.
      target_scale: how many pixels of a target a low-res pixel has along each side.
      augmentation: how images change that are not encoded; what it leaves open does not.
      process: the number of this process; JAX's by default.
      processes: how many there are; JAX's by default.

    Raises:
      ValueError: where the images cannot be split evenly, or `target_scale` is less than 1.
    """
    process = jax.process_index() if process is None else process
    processes = jax.process_count() if processes is None else processes
    if images < 1 or images % processes or (objects is not None and objects < 1):
        raise ValueError(
            f"A batch must have a number of images that {processes} process(es) can share, and one object or more; got "
            f"{images} images of {objects} objects."
        )
    if target_scale < 1:
        raise ValueError(f"target_scale must be 1 or more, got {target_scale}.")
    dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    dataset = dataset.random_map(
        functools.partial(
            make_item,
            config=config,
            objects=objects,
            preprocessing=preprocessing,
            frame_size=frame_size,
            target_scale=target_scale,
            augmentation=augmentation,
        )
    )
    # Split after everything random, which goes by an item's number among all.
    dataset = dataset.slice(slice(process, None, processes)).batch(images // processes, drop_remainder=True)
    threads = grain.ReadOptions(num_threads=0 if workers else 2, prefetch_buffer_size=0 if workers else 4)
    iterable = dataset.to_iter_dataset(threads)
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain hands absl's flags on to its workers, whether or not a program has any
            flags.FLAGS.mark_as_parsed()
        iterable = iterable.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2))
    return iter(iterable)


def make_item(
    example: Example,
    rng: np.random.Generator,
    *,
    config: SamConfig,
    objects: int | None,
    preprocessing: Preprocessing = "sam",
    frame_size: Size | None = None,
    target_scale: int = 1,
    augmentation: Augmentation = Augmentation(),  # noqa: B008 - frozen
) -> Batch:
    """Return one image of a batch, its arrays without the image axis.

    Args:
      example: the image and all of its objects.
      rng: for the choice of objects, and for what changes.
      config: settings of the decoder.
      objects: how many objects to take, as in `batches`.
      preprocessing: of an image that is not encoded.
      frame_size: as in `batches`.
      target_scale: as in `batches`.
      augmentation: as in `batches`.
    """
    number, chosen = len(example.masks), example.masks
    if objects is not None:
        chosen = chosen[rng.choice(number, min(objects, number), replace=False)]
    if example.encoded is None:
        example = augmented(dataclasses.replace(example, masks=chosen), rng, augmentation)
        chosen = example.masks
    frame = embedding = None
    if example.encoded is None:
        frame, _ = prepare(example.image, frame_size or config.image_size, preprocessing)
        height, width, _ = example.image.shape
        input_size = size_in_frame((height, width), config.image_size, preprocessing)
    else:
        embedding, input_size = jax.tree.map(_float32, example.encoded.embedding), example.encoded.input_size
    found, weight = make_targets(chosen, input_size, config, target_scale)
    targets = np.zeros((objects or number, *weight.shape), np.float32)
    targets[: len(chosen)] = found
    return Batch(
        images=frame,
        embeddings=embedding,
        targets=targets,
        weight=weight,
        valid=np.ones(number, bool) if objects is None else np.any(targets >= 0.5, axis=(1, 2)),
        input_size=np.array(input_size, np.int32),
    )


def _float32(values: AnyArray) -> np.ndarray:
    return np.asarray(values, np.float32)


def make_targets(
    masks: Bool[np.ndarray, "n height width"], input_size: Size, config: SamConfig, scale: int = 1
) -> tuple[Float[np.ndarray, "n ty tx"], Float[np.ndarray, "ty tx"]]:
    """Return the targets of masks and their pixels' weight, resized and padded as the image is.

    Args:
      masks: at the original size.
      input_size: height and width of the resized image, before padding.
      config: settings of the decoder.
      scale: pixels of a target along each side of a low-res pixel.
    """
    low = tuple(scale * side for side in config.mask_size)
    # Almost all of them are zero; and threads of BLAS, which turn idly for a while, would slow the training step down.
    rows, columns = (
        csr_array(coverage(*sizes)) for sizes in zip(low, config.image_size, input_size, masks.shape[1:], strict=True)
    )
    found = np.zeros((len(masks), *low), np.float32)
    for i, mask in enumerate(masks):
        found[i] = (columns @ (rows @ mask.astype(np.float32)).T).T
    weight = rows.sum(1)[:, None] * columns.sum(1)
    return found / np.where(weight > 0, weight, 1), weight
