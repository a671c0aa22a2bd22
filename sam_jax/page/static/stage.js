// The image on the screen: what is drawn, and what pointers and keys on it mean.
//
// A place on the image is (x, y) in its pixels; pixel (0, 0) reaches from 0 to 1. `onclick`, `onbox` and `onstroke` are
// told of what people do.

import { Layer } from "./layer.js";
import { encode, ofAlpha } from "./runs.js";

const DRAG = 5; // screen pixels from which a click is a drag
const FINGER_DRAG = 12; // likewise of a finger, which is never still
const NEAREST = 40; // screen pixels that a pixel of the image takes at most

export class Stage {
  // `tools` lie on the lower edge of the canvas.
  constructor(canvas, tools) {
    this.canvas = canvas;
    this.tools = tools;
    this.context = canvas.getContext("2d");
    this.tool = "add";
    this.opacity = 0.45;
    this.picture = null;
    this.cross = null; // where the keys point
    this.pointers = new Map();
    this.held = false; // the space bar
    this.gesture = null;
    this.prompt = null; // the object whose clicks and box are shown
    new ResizeObserver(() => this.#resized()).observe(canvas);
    for (const kind of ["pointerdown", "pointermove", "pointerup", "pointercancel"]) {
      canvas.addEventListener(kind, (event) => this[`_${kind}`](event));
    }
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    // A quick finger is no fling, after which a browser would not hear the next tap.
    canvas.addEventListener("touchstart", (event) => event.preventDefault(), { passive: false });
    canvas.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("blur", () => { this.cross = null; this.draw(); });
    document.addEventListener("keydown", (event) => { if (event.code === "Space") this.#hold(event, true); });
    document.addEventListener("keyup", (event) => { if (event.code === "Space") this.#hold(event, false); });
  }

  open(picture, width, height) {
    Object.assign(this, { picture, width, height, cross: null });
    this.others = new Layer(width, height);
    this.active = new Layer(width, height, "#ffffff");
    this.rough = new OffscreenCanvas(height, width); // on its side, as layers are
    this.roughContext = this.rough.getContext("2d", { willReadFrequently: true });
    this.roughShown = false;
    this.prompt = null;
    this.fit();
  }

  close() {
    this.picture = null;
    this.draw();
  }

  // Show objects: the active one apart, as it changes with each click.
  show(objects, active, colours) {
    if (!this.picture) return;
    const entry = (object) => [object.masks[object.chosen], colours[object.colour % colours.length]];
    const others = objects.filter((object) => object.id !== active?.id && object.masks.length).map(entry);
    this.others.paint(others, this.opacity);
    this.active.paint(active?.masks.length ? [entry(active)] : [], this.opacity);
    this.prompt = active;
    this.draw();
  }

  fit() {
    if (!this.picture) return;
    const { width, height } = this.canvas.getBoundingClientRect();
    const room = Math.min(this.tools.offsetHeight + 48, height / 4); // for the tools below
    this.scale = Math.min((width - 24) / this.width, (height - room - 12) / this.height);
    this.left = (width - this.width * this.scale) / 2;
    this.top = Math.max(12, (height - room - this.height * this.scale) / 2);
    this.draw();
  }

  zoom(factor, at = null) {
    if (!this.picture) return;
    const box = this.canvas.getBoundingClientRect();
    const { x, y } = at ?? { x: box.width / 2, y: box.height / 2 };
    const least = Math.min(1, 0.5 * Math.min(box.width / this.width, box.height / this.height));
    const scale = Math.min(NEAREST, Math.max(least, this.scale * factor));
    this.left = x - (x - this.left) * (scale / this.scale);
    this.top = y - (y - this.top) * (scale / this.scale);
    this.scale = scale;
    this.draw();
  }

  draw() {
    this.frame ??= requestAnimationFrame(() => { this.frame = null; this.#draw(); });
  }

  #draw() {
    const { context, canvas } = this;
    const ratio = window.devicePixelRatio;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (!this.picture) return;
    context.setTransform(ratio * this.scale, 0, 0, ratio * this.scale, ratio * this.left, ratio * this.top);
    context.imageSmoothingEnabled = this.scale < 3;
    context.drawImage(this.picture, 0, 0, this.width, this.height);
    this.others.draw(context);
    this.active.draw(context);
    if (this.roughShown) this.#drawRough();
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    if (this.prompt?.box) this.#drawBox(this.prompt.box);
    if (this.gesture?.box) this.#drawBox(this.gesture.box);
    this.prompt?.points.forEach(([x, y], i) => this.#drawPoint(x, y, this.prompt.labels[i]));
    if (this.cross) this.#drawCross();
  }

  #drawRough() {
    const { context } = this;
    context.save();
    context.globalAlpha = 0.5;
    context.transform(0, 1, 1, 0, 0, 0);
    context.drawImage(this.rough, 0, 0);
    context.restore();
  }

  #drawBox([x0, y0, x1, y1]) {
    const [left, top] = this.#toScreen(x0, y0);
    const [right, bottom] = this.#toScreen(x1, y1);
    this.context.lineWidth = 4;
    this.context.strokeStyle = "rgb(0 0 0 / 55%)";
    this.context.strokeRect(left, top, right - left, bottom - top);
    this.context.lineWidth = 2;
    this.context.strokeStyle = "#fff";
    this.context.strokeRect(left, top, right - left, bottom - top);
  }

  // Foreground is a green plus, background a red minus: told apart without colours.
  #drawPoint(x, y, label) {
    const { context } = this;
    const [left, top] = this.#toScreen(x, y);
    context.beginPath();
    context.arc(left, top, 8, 0, 2 * Math.PI);
    context.fillStyle = label ? "#137a3a" : "#b3261e";
    context.fill();
    context.lineWidth = 2;
    context.strokeStyle = "#fff";
    context.stroke();
    context.beginPath();
    context.moveTo(left - 4, top);
    context.lineTo(left + 4, top);
    if (label) {
      context.moveTo(left, top - 4);
      context.lineTo(left, top + 4);
    }
    context.stroke();
  }

  #drawCross() {
    const { context } = this;
    const [x, y] = this.#toScreen(...this.cross);
    for (const [width, colour] of [[4, "rgb(0 0 0 / 60%)"], [2, "#fff"]]) {
      context.beginPath();
      context.moveTo(x - 16, y);
      context.lineTo(x + 16, y);
      context.moveTo(x, y - 16);
      context.lineTo(x, y + 16);
      context.lineWidth = width;
      context.strokeStyle = colour;
      context.stroke();
    }
  }

  #toScreen(x, y) {
    return [this.left + x * this.scale, this.top + y * this.scale];
  }

  toImage(x, y) {
    const inside = (value, most) => Math.min(most, Math.max(0, value));
    return [inside((x - this.left) / this.scale, this.width), inside((y - this.top) / this.scale, this.height)];
  }

  #isInside(x, y) {
    const [left, top] = [(x - this.left) / this.scale, (y - this.top) / this.scale];
    return left >= 0 && top >= 0 && left <= this.width && top <= this.height;
  }

  #resized() {
    const { width, height } = this.canvas.getBoundingClientRect();
    this.canvas.width = Math.round(width * window.devicePixelRatio);
    this.canvas.height = Math.round(height * window.devicePixelRatio);
    this.fit();
  }

  #place(event) {
    const box = this.canvas.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  _pointerdown(event) {
    if (!this.picture) return;
    this.canvas.focus({ preventScroll: true });
    this.cross = null;
    this.canvas.setPointerCapture(event.pointerId);
    const place = this.#place(event);
    this.pointers.set(event.pointerId, place);
    if (this.pointers.size > 1) {
      this.#giveUp();
      this.gesture = { kind: "pinch" };
      return;
    }
    const takes = this.tool === "remove" || event.button === 2 || event.altKey;
    if (this.tool === "move" || this.held || event.button === 1) this.gesture = { kind: "move" };
    else if (this.tool === "brush") {
      this.gesture = { kind: "stroke", erases: event.button === 2 || event.altKey };
      this.#stroke(place, place);
    } else if (this.#isInside(place.x, place.y)) {
      const slack = event.pointerType === "touch" ? FINGER_DRAG : DRAG;
      this.gesture = { kind: "click", start: place, label: takes ? 0 : 1, slack };
    }
  }

  _pointermove(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before || !this.gesture) return;
    const place = this.#place(event);
    if (this.gesture.kind === "pinch") this.#pinch(event.pointerId, place);
    this.pointers.set(event.pointerId, place);
    if (this.gesture.kind === "move") {
      this.left += place.x - before.x;
      this.top += place.y - before.y;
    } else if (this.gesture.kind === "stroke") this.#stroke(before, place);
    else if (this.gesture.kind === "click") this.#drag(place);
    this.draw();
  }

  _pointerup(event) {
    const gesture = this.gesture;
    this.pointers.delete(event.pointerId);
    if (this.pointers.size === 1) this.gesture = { kind: "move" }; // one finger of a pinch is still there
    if (this.pointers.size) return;
    this.gesture = null;
    this.draw();
    if (gesture?.kind === "click" && gesture.box) this.onbox(gesture.box);
    else if (gesture?.kind === "click") this.onclick(this.toImage(gesture.start.x, gesture.start.y), gesture.label);
    else if (gesture?.kind === "stroke") this.onstroke();
  }

  _pointercancel(event) {
    this.pointers.delete(event.pointerId);
    this.#giveUp();
    this.draw();
  }

  // Forget what was begun: another finger has come, or the system has taken the pointer.
  #giveUp() {
    if (this.gesture?.kind === "stroke") this.setRough(this.prompt?.mask ?? null);
    this.gesture = null;
  }

  #drag(place) {
    const { start, label, slack } = this.gesture;
    if (!label || Math.hypot(place.x - start.x, place.y - start.y) < slack) return;
    const [x0, y0] = this.toImage(start.x, start.y);
    const [x1, y1] = this.toImage(place.x, place.y);
    const box = [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];
    this.gesture.box = box[0] < box[2] && box[1] < box[3] ? box : null;
  }

  #pinch(id, place) {
    const [other] = [...this.pointers].filter(([one]) => one !== id).map(([, at]) => at);
    const before = this.pointers.get(id);
    const distance = (a) => Math.max(1, Math.hypot(a.x - other.x, a.y - other.y));
    this.left += (place.x - before.x) / 2;
    this.top += (place.y - before.y) / 2;
    this.zoom(distance(place) / distance(before), { x: (place.x + other.x) / 2, y: (place.y + other.y) / 2 });
  }

  #stroke(from, to) {
    const context = this.roughContext;
    const [x0, y0] = this.toImage(from.x, from.y);
    const [x1, y1] = this.toImage(to.x, to.y);
    context.globalCompositeOperation = this.gesture.erases ? "destination-out" : "source-over";
    context.strokeStyle = "#fff";
    context.lineCap = "round";
    context.lineWidth = 28 / this.scale;
    context.beginPath();
    context.moveTo(y0, x0);
    context.lineTo(y1 + 0.01, x1);
    context.stroke();
    this.roughShown = true;
    this.draw();
  }

  // The rough mask as run lengths, and null where nothing is painted.
  roughMask() {
    const runs = ofAlpha(this.roughContext.getImageData(0, 0, this.height, this.width).data);
    return runs.length > 1 ? { size: [this.height, this.width], counts: encode(runs) } : null;
  }

  // Take a rough mask as what is painted already.
  setRough(mask) {
    this.roughContext.clearRect(0, 0, this.height, this.width);
    this.roughShown = mask !== null;
    if (mask) {
      const layer = new Layer(this.width, this.height);
      layer.paint([[mask, "#ffffff"]], 1);
      this.roughContext.globalCompositeOperation = "source-over";
      this.roughContext.drawImage(layer.canvas, 0, 0);
    }
    this.draw();
  }

  #wheel(event) {
    event.preventDefault();
    this.zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0015)), this.#place(event));
  }

  #hold(event, held) {
    if (held && event.target !== this.canvas && event.target !== document.body) return;
    if (held) event.preventDefault();
    this.held = held;
    this.canvas.classList.toggle("move", held || this.tool === "move");
  }

  #key(event) {
    if (!this.picture || event.ctrlKey || event.metaKey) return;
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const step = steps[event.key];
    if (step) {
      event.preventDefault();
      const size = (event.shiftKey ? 40 : 4) / this.scale;
      const [x, y] = this.cross ?? [this.width / 2, this.height / 2];
      this.cross = this.cross ? [x + step[0] * size, y + step[1] * size] : [x, y];
      this.cross = this.toImage(...this.#toScreen(...this.cross));
      this.draw();
    } else if (event.key === "Enter" && this.cross) {
      event.preventDefault();
      this.onclick(this.cross, event.altKey || this.tool === "remove" ? 0 : 1);
    }
  }

  setTool(tool) {
    this.tool = tool;
    this.canvas.classList.toggle("move", tool === "move");
  }
}
