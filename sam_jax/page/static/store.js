// The objects of the image: what they were, what they are, and what is asked for and not answered yet.
//
// Objects are never changed, only replaced: a step back is another list of the same objects. Only answers make steps, so
// each step has its masks.

const MOST_STEPS = 200;

export class Store extends EventTarget {
  constructor(api) {
    super();
    this.api = api;
    this.open(null, []);
    this.saving = null;
  }

  open(image, objects) {
    this.abort();
    this.image = image;
    this.steps = [objects];
    this.at = 0;
    this.active = null;
    this.name = objects.at(-1)?.name ?? "object";
    this.#changed();
  }

  get objects() { return this.steps[this.at]; }
  get canUndo() { return this.pending.size > 0 || this.at > 0; }
  get canRedo() { return this.pending.size === 0 && this.at < this.steps.length - 1; }

  // An object as it will be when it is answered, or as it is.
  latest(id) {
    return this.pending.get(id)?.object ?? this.objects.find((object) => object.id === id) ?? null;
  }

  // The active object, or a new one.
  current() {
    return this.latest(this.active) ?? this.#fresh();
  }

  #fresh() {
    const used = [...this.objects, ...[...this.pending.values()].map((one) => one.object)];
    const next = 1 + Math.max(0, ...used.map((object) => object.id));
    return { id: next, name: this.name, colour: next - 1, points: [], labels: [], box: null, mask: null, masks: [], chosen: 0 };
  }

  // Ask for the masks of an object. What it was asked for before is dropped.
  async ask(object) {
    const image = this.image;
    this.pending.get(object.id)?.controller.abort();
    const controller = new AbortController();
    this.pending.set(object.id, { object, controller });
    this.active = object.id;
    this.#changed();
    const { points, labels, box, mask } = object;
    const tokens = points.length + (box ? 2 : 0);
    const question = { objects: [{ points, labels, box, mask }], multimask: tokens < 3 };
    try {
      const answer = await this.api.masks(image.id, question, controller.signal);
      if (this.pending.get(object.id)?.controller !== controller) return;
      const asked = this.pending.get(object.id).object; // it may have another name by now
      this.pending.delete(object.id);
      const masks = answer.objects[0].masks;
      const best = masks.reduce((a, b, i) => (b.score > masks[a].score ? i : a), 0);
      this.put({ ...asked, masks, chosen: best });
    } catch (error) {
      if (this.pending.get(object.id)?.controller === controller) this.pending.delete(object.id);
      this.#changed();
      if (error.name !== "AbortError") throw error;
    }
  }

  abort() {
    for (const { controller } of this.pending?.values() ?? []) controller.abort();
    this.pending = new Map();
  }

  // Replace an object, or add it.
  put(object) {
    const there = this.objects.some((one) => one.id === object.id);
    this.#step(there ? this.objects.map((one) => (one.id === object.id ? object : one)) : [...this.objects, object]);
  }

  // Add objects of which only masks are known.
  add(found) {
    let next = this.#fresh();
    const added = found.map(({ masks }, i) => ({ ...next, id: next.id + i, colour: next.colour + i, masks }));
    this.#step([...this.objects, ...added]);
  }

  choose(index) {
    const object = this.objects.find((one) => one.id === this.active);
    if (object?.masks[index]) this.put({ ...object, chosen: index });
  }

  rename(id, name) {
    this.name = name;
    const pending = this.pending.get(id);
    if (pending) pending.object = { ...pending.object, name };
    const object = this.objects.find((one) => one.id === id);
    if (object && object.name !== name) this.put({ ...object, name });
  }

  remove(id) {
    this.pending.get(id)?.controller.abort();
    this.pending.delete(id);
    if (this.active === id) this.active = null;
    this.#step(this.objects.filter((one) => one.id !== id));
  }

  activate(id) {
    this.active = id;
    this.#changed();
  }

  // To the object `by` places after the active one.
  next(by) {
    const ids = this.objects.map((one) => one.id);
    if (ids.length) this.activate(ids.at((ids.indexOf(this.active) + by + ids.length) % ids.length));
  }

  undo() {
    if (this.pending.size) this.abort();
    else if (this.at > 0) this.at -= 1;
    this.#moved();
  }

  redo() {
    if (this.canRedo) this.at += 1;
    this.#moved();
  }

  #step(objects) {
    this.steps = [...this.steps.slice(0, this.at + 1), objects].slice(-MOST_STEPS);
    this.at = this.steps.length - 1;
    this.#moved();
  }

  #moved() {
    if (this.active !== null && !this.latest(this.active)) this.active = null;
    this.#changed();
    this.save();
  }

  // Have the server keep the objects; one request at a time, and of several that wait the last.
  save() {
    if (!this.image) return Promise.resolve();
    this.unsaved = { image: this.image.id, objects: this.objects };
    this.saving ??= this.#saveAll().finally(() => { this.saving = null; });
    return this.saving;
  }

  async #saveAll() {
    while (this.unsaved) {
      const { image, objects } = this.unsaved;
      this.unsaved = null;
      try {
        await this.api.keep(image, objects);
      } catch (error) {
        this.dispatchEvent(new CustomEvent("problem", { detail: `The objects were not kept. ${error.message}` }));
      }
    }
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}
