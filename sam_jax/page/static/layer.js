// Masks as a picture. Run lengths go down the columns, so the picture lies on its side: its rows are the image's
// columns, and a run is one stretch of memory. `draw` sets it upright.

import { area, decode } from "./runs.js";

const decoded = new WeakMap();

// The runs of a mask, decoded once.
export function runsOf(mask) {
  if (!decoded.has(mask)) decoded.set(mask, decode(mask.counts));
  return decoded.get(mask);
}

export class Layer {
  // `rim` is the colour of a line around each mask, in front of its own: seen on any image.
  constructor(width, height, rim = null) {
    this.rim = rim;
    this.width = width;
    this.height = height;
    this.canvas = new OffscreenCanvas(height, width);
    this.context = this.canvas.getContext("2d");
    this.image = this.context.createImageData(height, width);
    this.pixels = new Uint32Array(this.image.data.buffer);
    this.owners = new Uint16Array(width * height);
    this.painted = { masks: [], opacity: 0 };
    this.border = Math.max(1, Math.round(Math.max(width, height) / 700));
  }

  // Paint masks, each [mask, "#rrggbb"], the smallest on top: filled with an opacity, their borders in the full colour.
  // What is painted already is not painted again.
  paint(masks, opacity) {
    if (this.#shows(masks, opacity)) return;
    this.painted = { masks, opacity };
    this.owners.fill(0);
    this.pixels.fill(0);
    const order = masks.map(([mask, colour]) => ({ runs: runsOf(mask), colour }));
    order.sort((a, b) => area(b.runs) - area(a.runs));
    let first = this.owners.length, end = 0;
    order.forEach(({ runs }, i) => {
      for (let k = 0, at = 0; k < runs.length; at += runs[k++]) {
        if (k % 2) {
          this.owners.fill(i + 1, at, at + runs[k]);
          first = Math.min(first, at);
          end = Math.max(end, at + runs[k]);
        }
      }
    });
    const fill = [0, ...order.map(({ colour }) => packed(colour, opacity))];
    const edge = [0, ...order.map(({ colour }) => packed(colour, 1))];
    const rim = this.rim ? edge.map(() => packed(this.rim, 1)) : edge;
    this.#colour(fill, edge, rim, first, end);
    this.context.putImageData(this.image, 0, 0);
  }

  #shows(masks, opacity) {
    const { painted } = this;
    return painted.masks.length === masks.length && (painted.opacity === opacity || !masks.length) &&
      masks.every(([mask, colour], i) => mask === painted.masks[i][0] && colour === painted.masks[i][1]);
  }

  #colour(fill, edge, rim, first, end) {
    const { owners, pixels, border, height } = this;
    const isInner = (i, y, owner, by) => y >= by && y < height - by && owners[i - by] === owner &&
      owners[i + by] === owner && owners[i - by * height] === owner && owners[i + by * height] === owner;
    for (let i = first; i < end; i++) {
      const owner = owners[i];
      if (!owner) continue;
      const y = i % height;
      if (isInner(i, y, owner, 2 * border)) pixels[i] = fill[owner];
      else pixels[i] = isInner(i, y, owner, border) ? edge[owner] : rim[owner];
    }
  }

  draw(context) {
    if (!this.painted.masks.length) return;
    context.save();
    context.transform(0, 1, 1, 0, 0, 0);
    context.drawImage(this.canvas, 0, 0);
    context.restore();
  }
}

function packed(colour, opacity) {
  const rgb = parseInt(colour.slice(1), 16);
  const [red, green, blue] = [rgb >> 16, (rgb >> 8) & 255, rgb & 255];
  return ((Math.round(255 * opacity) << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}
