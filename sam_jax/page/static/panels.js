// The lists at the sides.

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// The images, each a button; `open` is told which is meant.
export function showImages(list, images, current, pictureUrl, open) {
  list.replaceChildren(...images.map((image) => {
    const picture = element("img", { src: pictureUrl(image.id, 320), alt: "", loading: "lazy" });
    const name = element("span", { textContent: image.name });
    const button = element("button", { title: image.name, onclick: () => open(image.id) }, picture, name);
    button.setAttribute("aria-current", String(image.id === current));
    return element("li", {}, button);
  }));
  markImages(list, images);
}

// Mark the images of which objects are kept.
export function markImages(list, images) {
  images.forEach((image, i) => list.children[i].querySelector("span").classList.toggle("kept", image.has_objects));
}

// The objects, each with its colour, name and score. Where only something in a row changes, the row stays, and with it
// the keyboard's focus.
export function showObjects(list, objects, active, colours, on) {
  const rows = new Map([...list.children].map((row) => [Number(row.dataset.id), row]));
  const wanted = objects.map((object) => {
    const row = rows.get(object.id) ?? objectRow(object.id, on);
    const [colour, name, score, remove] = row.children;
    colour.style.color = colours[object.colour % colours.length];
    colour.setAttribute("aria-label", `Object ${object.id}: ${object.name}`);
    colour.setAttribute("aria-pressed", String(object.id === active));
    remove.setAttribute("aria-label", `Delete object ${object.id}`);
    if (document.activeElement !== name) name.value = object.name;
    name.setAttribute("aria-label", `Name of object ${object.id}`);
    score.textContent = object.masks.length ? object.masks[object.chosen].score.toFixed(2) : "…";
    row.classList.toggle("active", object.id === active);
    return row;
  });
  if (wanted.length !== list.children.length || wanted.some((row, i) => row !== list.children[i])) {
    list.replaceChildren(...wanted);
  }
}

function objectRow(id, on) {
  const colour = element("button", { className: "colour", title: "Make it the active object", onclick: () => on.activate(id) });
  const name = element("input", { maxLength: 100, onfocus: () => on.activate(id) });
  name.onchange = () => on.rename(id, name.value.trim() || "object");
  name.onkeydown = (event) => { if (event.key === "Enter" || event.key === "Escape") name.blur(); };
  const score = element("span", { className: "score", title: "The IoU that the model expects" });
  const remove = element("button", { className: "delete", title: "Delete (Delete)", textContent: "×", onclick: () => on.remove(id) });
  const row = element("li", {}, colour, name, score, remove);
  row.dataset.id = id;
  return row;
}

// The masks of the active object, one of which is chosen.
export function showCandidates(section, object, choose) {
  section.hidden = !object || object.masks.length < 2;
  if (section.hidden) return;
  const group = section.querySelector(".group");
  if (group.children.length !== object.masks.length) {
    group.replaceChildren(...object.masks.map((_, i) => {
      const button = element("button", { onclick: () => choose(i), title: `Mask ${i + 1} (${i + 1})` });
      button.setAttribute("role", "radio");
      return button;
    }));
  }
  object.masks.forEach((mask, i) => {
    const button = group.children[i];
    button.textContent = `${i + 1} · ${mask.score.toFixed(2)}`;
    button.setAttribute("aria-checked", String(i === object.chosen));
    button.setAttribute("aria-label", `Mask ${i + 1}, score ${mask.score.toFixed(2)}`);
  });
}
