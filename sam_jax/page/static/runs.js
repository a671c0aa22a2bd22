// COCO's compressed run lengths: numbers of pixels, column by column, in turns outside and inside of the mask. A number
// is five bits of each character, the lowest first; from the fourth on, it is the difference to the one before the last.

export function decode(text) {
  const runs = [];
  let at = 0;
  while (at < text.length) {
    let value = 0, shift = 0, code;
    do {
      code = text.charCodeAt(at++) - 48;
      value |= (code & 31) << shift;
      shift += 5;
    } while (code & 32);
    if (code & 16 && shift < 32) value |= -1 << shift;
    if (runs.length > 2) value += runs[runs.length - 2];
    runs.push(value);
  }
  return runs;
}

export function encode(runs) {
  let text = "";
  for (let i = 0; i < runs.length; i++) {
    let value = i > 2 ? runs[i] - runs[i - 2] : runs[i];
    for (let more = true; more; ) {
      const code = value & 31;
      value >>= 5;
      more = code & 16 ? value !== -1 : value !== 0;
      text += String.fromCharCode((more ? code | 32 : code) + 48);
    }
  }
  return text;
}

// The run lengths of pixels, column by column, that are inside where their alpha is above the half.
export function ofAlpha(pixels) {
  const runs = [];
  let inside = false, start = 0;
  const count = pixels.length / 4;
  for (let i = 0; i < count; i++) {
    if (pixels[4 * i + 3] > 127 !== inside) {
      runs.push(i - start);
      start = i;
      inside = !inside;
    }
  }
  runs.push(count - start);
  return runs;
}

export function area(runs) {
  let sum = 0;
  for (let i = 1; i < runs.length; i += 2) sum += runs[i];
  return sum;
}
