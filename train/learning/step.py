"""The training step: a jitted function of state and batch, on one device or many."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key

from sam_jax.batch.decode import CHUNK, CPU_CHUNK, decode_batch, map_groups, platform_of
from sam_jax.batch.sharding import IMAGE, PROMPT_SET
from sam_jax.config import SamConfig
from sam_jax.decoder.features import Features
from sam_jax.decoder.model import MaskPrediction, Sam
from sam_jax.prompts import Prompts
from sam_jax.train.config import LossConfig, Simulation
from sam_jax.train.data.batches import Batch
from sam_jax.train.learning.losses import iou_weight_at
from sam_jax.train.learning.rounds import Metrics, class_gradients, interactive_gradients
from sam_jax.train.learning.state import ENCODER, Flat, TrainState, unflatten

Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_step(
    model: Sam,
    optimizer: optax.GradientTransformation,
    *,
    encoder: nn.Module | None = None,
    simulation: Simulation = Simulation(),  # noqa: B008 - frozen
    loss: LossConfig = LossConfig(),  # noqa: B008 - frozen
    classes: bool = False,
    seed: int = 0,
    mesh: Mesh | None = None,
    remat: bool = False,
) -> Step:
    """Return a function from state and batch to the state after one step, and the step's metrics.

    The state that goes in is used up: its parameters' memory becomes that of the new ones. What the metrics are is said
    at `interactive_gradients`; `gradient` is the gradient's norm before clipping.

    Args:
      model: the decoder. It computes in `model.config.dtype`, the parameters stay in float32.
      optimizer: updates the flat parameters that train.
      encoder: computes the embeddings of the batch's images in the step; by default the batch brings embeddings.
      simulation: how the prompts come about.
      loss: weights of the loss.
      classes: the batch's objects are the classes of masks 1, 2, ..., and each image is asked for once, as a whole.
      seed: of the prompts. They depend on it, on the number of the step and on the place in the batch alone, so that
        neither a resumed run nor another number of devices changes them.
      mesh: devices to split images and objects over (`sam_jax.make_mesh`). The state must be on all of them
        (`sam_jax.replicate`); each process brings its own share of the images.
      remat: compute each image's activations in the decoder a second time for the backward pass instead of keeping
        those of all images.
    """
    gradients = functools.partial(
        batch_gradients,
        model,
        encoder=encoder,
        simulation=simulation,
        loss=loss,
        classes=classes,
        remat=remat,
        platform=platform_of(()) if mesh is None else mesh.devices.flat[0].platform,
    )
    if mesh is not None:
        gradients = split_gradients(gradients, mesh)

    @functools.partial(jax.jit, donate_argnums=0)
    def update(moving: Any, fixed: Any, batch: Batch) -> tuple[Any, Metrics]:
        number, params, optimizer_state = moving
        keys = object_keys(seed, number, batch.valid.shape)
        metrics, gradient = gradients(params, fixed, batch, keys, iou_weight_at(number, loss))
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
        metrics |= {"gradient": optax.tree.norm(gradient)}
        return (number + 1, optax.apply_updates(params, updates), optimizer_state), metrics

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        batch = batch if mesh is None else shard_batch(batch, mesh)
        moving, metrics = update((state.step, state.params, state.optimizer), (state.frozen, state.constants), batch)
        return dataclasses.replace(state, step=moving[0], params=moving[1], optimizer=moving[2]), metrics

    return step


def object_keys(seed: int, step: Int[Array, ""], shape: tuple[int, ...]) -> Key[Array, "b o"]:
    """Return the key of each object of a batch at a step."""
    return jax.random.split(jax.random.fold_in(jax.random.key(seed), step), shape)


def batch_gradients(
    model: Sam,
    params: Flat,
    fixed: tuple[Flat, dict[str, Any]],
    batch: Batch,
    keys: Key[Array, "b o"],
    iou_weight: Float[Array, ""],
    *,
    encoder: nn.Module | None,
    simulation: Simulation,
    loss: LossConfig,
    classes: bool,
    remat: bool,
    platform: str | None = None,
    count: Int[Array, ""] | None = None,
) -> tuple[Metrics, Flat]:
    """Return the metrics of a batch and the gradient of the parameters that train; the arguments are `make_step`'s.

    Args:
      model: the decoder.
      params: what trains.
      fixed: the frozen parameters, and the constants.
      batch: with embeddings, or with images for the encoder.
      keys: one for each object.
      iou_weight: of the score's term at this step.
      encoder: as in `make_step`.
      simulation: as in `make_step`.
      loss: as in `make_step`.
      classes: as in `make_step`.
      remat: as in `make_step`.
      platform: the kind of device that will run, where that is known; otherwise it takes longer to trace.
      count: number of objects that losses are divided by; by default those of the batch.
    """
    frozen, constants = fixed

    def decode(trained: tuple[Flat, Features], prompts: Prompts) -> MaskPrediction:
        params, embeddings = trained
        variables = unflatten(frozen | params, constants)[0]
        run = functools.partial(
            decode_batch, model, variables, chunk=at_once(model.config, platform), platform=platform
        )
        if not remat:
            return run(embeddings, prompts)
        # One image after the other, so that the backward pass has the activations of one alone.
        return map_groups(jax.checkpoint(lambda inputs: run(*inputs)), (embeddings, prompts), 1)

    def encode(params: Flat) -> Features:
        variables = unflatten(frozen | params, constants)[1]
        return jax.vmap(functools.partial(encoder.apply, variables))(batch.images)  # pyright: ignore

    of_loss: dict[str, Any] = {"batch": batch, "loss": loss, "iou_weight": iou_weight, "count": count}
    if classes:
        play = functools.partial(class_gradients, **of_loss)
    else:
        play = functools.partial(
            interactive_gradients, keys=keys, config=model.config, simulation=simulation, **of_loss
        )
    if any(path.startswith(ENCODER) for path in params):
        embeddings, pull_back = jax.vjp(encode, params)
        metrics, (gradient, of_embeddings) = play(decode, (params, embeddings))
        return metrics, jax.tree.map(jnp.add, gradient, pull_back(of_embeddings)[0])
    embeddings = jax.tree.map(jnp.asarray, batch.embeddings) if encoder is None else encode(params)
    return play(lambda params, prompts: decode((params, embeddings), prompts), params)


def at_once(config: SamConfig, platform: str | None) -> int:
    """Return how many prompt sets to decode at once: of a smaller decoder more than of the full one, as many as fill
    the same memory. In groups of a few, it would take twice as long to compile and to run.
    """

    def size(config: SamConfig) -> int:
        return math.prod(config.grid_size) * config.width

    most = CPU_CHUNK if platform == "cpu" else CHUNK
    return max(1, most * size(SamConfig()) // size(config))


def split_gradients(gradients: Callable[..., tuple[Metrics, Flat]], mesh: Mesh) -> Callable[..., tuple[Metrics, Flat]]:
    """Return `batch_gradients` with each device computing its share, and metrics and gradients summed over all."""
    axes = (IMAGE, PROMPT_SET)

    def share(params: Flat, fixed: Any, batch: Batch, keys: Array, iou_weight: Array) -> tuple[Metrics, Flat]:
        count = jax.lax.psum(batch.valid.sum(), axes)
        return jax.lax.psum(gradients(params, fixed, batch, keys, iou_weight, count=count), axes)

    whole, objects = PartitionSpec(), PartitionSpec(IMAGE, PROMPT_SET)
    # Without the check, so that the gradient of what all devices have is that of each device's share, and is summed
    # once, here, rather than in every round.
    return jax.shard_map(
        share,
        mesh=mesh,
        in_specs=(whole, whole, batch_specs(), objects, whole),
        out_specs=(whole, whole),
        check_vma=False,
    )


def batch_specs() -> Batch:
    """Return how each array of a batch is split: by image, and by object where it has that axis."""
    images: Any = PartitionSpec(IMAGE)
    objects: Any = PartitionSpec(IMAGE, PROMPT_SET)
    return Batch(images=images, embeddings=images, targets=objects, weight=images, valid=objects, input_size=images)


def shard_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Return a batch with each device's share on it. Every process brings its own images.

    Raises:
      ValueError: if the mesh does not divide the images and objects evenly.
    """
    images, objects = batch.valid.shape
    here = max(1, mesh.shape[IMAGE] // jax.process_count())
    if images % here or objects % mesh.shape[PROMPT_SET]:
        raise ValueError(
            f"The mesh must divide a batch evenly: it has {here} rows of devices for {images} images of this process, "
            f"and {mesh.shape[PROMPT_SET]} columns for {objects} objects."
        )

    def place(spec: PartitionSpec, x: Any) -> Any:
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), x)

    specs = batch_specs()
    placed = {f.name: place(getattr(specs, f.name), getattr(batch, f.name)) for f in dataclasses.fields(batch)}
    return dataclasses.replace(batch, **placed)
