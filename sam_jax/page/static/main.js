// The page: it joins the stage, the store and the panels, and says what keys and buttons do.

import { api } from "./api.js";
import { markImages, showCandidates, showImages, showObjects } from "./panels.js";
import { Stage } from "./stage.js";
import { Store } from "./store.js";

const $ = (id) => document.getElementById(id);
const SURENESS = {
  sure: { pred_iou_thresh: 0.88, stability_score_thresh: 0.95 },
  more: { pred_iou_thresh: 0.6, stability_score_thresh: 0.75 },
};

const store = new Store(api);
const stage = new Stage($("stage"), $("tools"));
let colours = ["#0f5e63"];
let images = [];
let job = null;
let opening = null; // of the image that is being opened
const waiting = { program: null, image: null };

// What the page waits for, and what went wrong.

function showStatus() {
  const text = waiting.image ?? waiting.program;
  $("status").hidden = text === null;
  $("status").textContent = text ?? "";
}

let forgetting = 0;
function complain(error) {
  $("message").textContent = error.message ?? String(error);
  $("message").hidden = false;
  clearTimeout(forgetting);
  forgetting = setTimeout(() => { $("message").hidden = true; }, 8000);
}

const guarded = (work) => async (...given) => {
  try {
    await work(...given);
  } catch (error) {
    complain(error);
  }
};

async function watchModel() {
  const model = await api.model();
  $("model").textContent = model.name;
  colours = model.colours;
  waiting.program = model.waiting_for;
  showStatus();
  if (model.waiting_for !== null) setTimeout(guarded(watchModel), 700);
}

// Images.

function listImages() {
  showImages($("images"), images, store.image?.id, api.pictureUrl, guarded(open));
  $("empty").hidden = images.length > 0;
}

async function open(id) {
  await store.save();
  opening?.abort();
  const mine = (opening = new AbortController());
  const [image, objects] = await Promise.all([api.image(id), api.objects(id)]);
  const picture = await load(api.pictureUrl(id));
  if (mine.signal.aborted) return;
  stage.open(picture, image.width, image.height);
  store.open(image, objects);
  history.replaceState(null, "", `#${id}`);
  listImages();
  if (image.prepared) return;
  waiting.image = `Preparing ${image.name}`;
  showStatus();
  try {
    await api.prepare(id, mine.signal);
  } catch (error) {
    if (error.name !== "AbortError") throw error;
  } finally {
    if (opening === mine) {
      waiting.image = null;
      showStatus();
    }
  }
}

async function load(url) {
  const picture = new Image();
  picture.src = url;
  await picture.decode();
  return picture;
}

async function add(files) {
  const added = [];
  for (const file of files) {
    waiting.image = `Adding ${file.name}`;
    showStatus();
    try {
      added.push(await api.add(file));
    } catch (error) {
      complain(error);
    }
  }
  waiting.image = null;
  showStatus();
  images = await api.images();
  listImages();
  if (added.length) await open(added[0].id);
}

function turn(by) {
  const at = images.findIndex((image) => image.id === store.image?.id) + by;
  if (images[at]) guarded(open)(images[at].id);
}

// Objects.

let roughOf = null; // the object whose rough mask is painted
function show() {
  const pending = [...store.pending.values()].map((one) => one.object);
  const ids = new Set(store.objects.map((object) => object.id));
  const objects = [...store.objects, ...pending.filter((object) => !ids.has(object.id))];
  const active = store.latest(store.active);
  const shown = active && store.objects.find((object) => object.id === active.id);
  stage.show(store.objects, active && { ...active, masks: shown?.masks ?? [], chosen: shown?.chosen ?? 0 }, colours);
  const rough = active?.mask ?? null;
  if (stage.picture && rough !== roughOf) {
    stage.setRough(rough);
    roughOf = rough;
  }
  showObjects($("objects"), objects, store.active, colours, {
    activate: (id) => { if (store.active !== id) store.activate(id); },
    rename: (id, name) => store.rename(id, name),
    remove: (id) => store.remove(id),
  });
  showCandidates($("candidates"), shown, (i) => store.choose(i));
  $("hint").hidden = objects.length > 0;
  $("undo").disabled = !store.canUndo;
  $("redo").disabled = !store.canRedo;
  const kept = images.find((image) => image.id === store.image?.id);
  if (kept) kept.has_objects = store.objects.length > 0;
  markImages($("images"), images);
}

stage.onclick = guarded(async ([x, y], label) => {
  const object = store.current();
  if (!label && !object.points.length && !object.box && !object.mask && !object.masks.length) {
    throw new Error("Click on the object first; then take away what does not belong to it.");
  }
  await store.ask({ ...object, points: [...object.points, [x, y]], labels: [...object.labels, label] });
});
stage.onbox = guarded((box) => store.ask({ ...store.current(), box }));
stage.onstroke = guarded(async () => {
  const mask = stage.roughMask();
  const object = { ...store.current(), mask };
  roughOf = mask;
  if (mask || object.points.length || object.box) await store.ask(object);
});

store.addEventListener("change", show);
store.addEventListener("problem", (event) => complain(new Error(event.detail)));

// Everything.

const findEverything = guarded(async () => {
  if (job || !store.image) return;
  const image = store.image;
  const settings = { points_per_side: Number($("density").value), ...SURENESS[$("sureness").value] };
  job = await api.everything(image.id, settings);
  $("job").hidden = false;
  $("everything").disabled = true;
  try {
    while (job.state === "waiting" || job.state === "running") {
      $("progress").value = job.progress;
      await new Promise((resolve) => setTimeout(resolve, 300));
      job = await api.job(job.id);
    }
    if (job.state === "failed") throw new Error(job.problem);
    if (job.state === "done" && store.image.id === image.id) {
      if (job.objects.length) store.add(job.objects);
      else throw new Error("Nothing was found that is sure enough. More masks, or a finer grid, may find something.");
    }
  } finally {
    job = null;
    $("job").hidden = true;
    $("everything").disabled = false;
  }
});

// Export.

async function download(id) {
  await store.save();
  const kind = document.querySelector("input[name=kind]:checked").value;
  const response = await fetch(api.exportUrl(kind, id));
  if (!response.ok) throw new Error((await response.json()).detail);
  const name = /filename="(.*)"/.exec(response.headers.get("content-disposition"))[1];
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await response.blob());
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  $("exports").close();
}

// Buttons and keys.

function setTool(tool) {
  stage.setTool(tool);
  for (const button of document.querySelectorAll("[data-tool]")) {
    button.setAttribute("aria-checked", String(button.dataset.tool === tool));
  }
}

const keys = {
  a: () => setTool("add"),
  r: () => setTool("remove"),
  b: () => setTool("brush"),
  h: () => setTool("move"),
  n: () => store.activate(null),
  e: () => findEverything(),
  s: () => $("exports").showModal(),
  f: () => stage.fit(),
  z: () => store.undo(),
  Z: () => store.redo(),
  y: () => store.redo(),
  "+": () => stage.zoom(1.3),
  "=": () => stage.zoom(1.3),
  "-": () => stage.zoom(1 / 1.3),
  "[": () => store.next(-1),
  "]": () => store.next(1),
  "?": () => $("keys").showModal(),
  1: () => store.choose(0),
  2: () => store.choose(1),
  3: () => store.choose(2),
  Delete: () => { if (store.active !== null) store.remove(store.active); },
  Backspace: () => { if (store.active !== null) store.remove(store.active); },
  PageUp: () => turn(-1),
  PageDown: () => turn(1),
};
const WITH_CONTROL = new Set(["z", "Z", "y"]);

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input:not([type=range], [type=radio], [type=file]), select");
  const control = event.ctrlKey || event.metaKey;
  if (typing || document.querySelector("dialog[open]") || (control && !WITH_CONTROL.has(event.key)) || event.altKey) return;
  if (!Object.hasOwn(keys, event.key)) return;
  event.preventDefault();
  keys[event.key]();
});

for (const button of document.querySelectorAll("[data-tool]")) button.onclick = () => setTool(button.dataset.tool);
for (const button of document.querySelectorAll("[data-close]")) button.onclick = () => button.closest("dialog").close();
$("undo").onclick = keys.z;
$("redo").onclick = keys.Z;
$("new").onclick = keys.n;
$("in").onclick = keys["+"];
$("out").onclick = keys["-"];
$("fit").onclick = keys.f;
$("help").onclick = keys["?"];
$("export").onclick = keys.s;
$("everything").onclick = findEverything;
$("stop").onclick = guarded(async () => { if (job) await api.stop(job.id); });
$("export-one").onclick = guarded(() => download(store.image?.id));
$("export-all").onclick = guarded(() => download(null));
$("opacity").oninput = () => {
  stage.opacity = Number($("opacity").value);
  show();
};
$("file").onchange = guarded(async () => {
  await add([...$("file").files]);
  $("file").value = "";
});

const main = document.querySelector("main");
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  main.classList.add("drop");
});
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) main.classList.remove("drop"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  main.classList.remove("drop");
  guarded(add)([...event.dataTransfer.files]);
});

guarded(async () => {
  [images] = await Promise.all([api.images(), watchModel()]);
  listImages();
  const wanted = location.hash.slice(1);
  const first = images.find((image) => image.id === wanted) ?? images[0];
  if (first) await open(first.id);
})();
