// Codes as small patterns: one cell a bit, row by row, first bit first.

export function bitsOf(hex, n) {
  const bits = new Uint8Array(n);
  for (let i = 0; i < n; i++) bits[i] = (parseInt(hex[i >> 2], 16) >> (3 - (i & 3))) & 1;
  return bits;
}

export function differing(a, b) {
  return a.map((bit, i) => bit ^ b[i]);
}

export function columns(n) {
  return 2 ** Math.ceil(Math.log2(Math.sqrt(n)));
}

let colours = null;

export function forgetColours() {
  colours = null;
}

export function palette() {
  if (!colours) {
    // A probe resolves light-dark() for the theme in use; custom properties alone would come back unresolved.
    const probe = document.createElement("i");
    document.body.append(probe);
    const read = (name) => {
      probe.style.color = `var(${name})`;
      return getComputedStyle(probe).color;
    };
    colours = { on: read("--bit-on"), off: read("--bit-off"), differs: read("--differs"), accent: read("--accent"), page: read("--page") };
    probe.remove();
  }
  return colours;
}

// Patterns side by side: [{ bits, colour }], `width` points a pattern.
export function draw(canvas, patterns, width) {
  const { on, off, differs } = palette();
  const scale = Math.max(1, Math.ceil(window.devicePixelRatio || 1));
  const across = columns(patterns[0].bits.length);
  const down = Math.ceil(patterns[0].bits.length / across);
  const pitch = Math.max(2, Math.floor((width * scale) / across));
  const cell = pitch < 5 ? pitch : pitch - Math.max(1, Math.round(pitch / 8)); // no gaps where there is no room for them
  const space = Math.round(6 * scale);
  canvas.width = patterns.length * (across * pitch) + (patterns.length - 1) * space;
  canvas.height = down * pitch;
  canvas.style.width = `${canvas.width / scale}px`;
  canvas.style.height = `${canvas.height / scale}px`;
  const context = canvas.getContext("2d");
  patterns.forEach(({ bits, kind }, place) => {
    const left = place * (across * pitch + space);
    for (const wanted of [0, 1]) {
      context.fillStyle = wanted ? (kind === "differs" ? differs : on) : off;
      for (let i = 0; i < bits.length; i++) {
        if (bits[i] === wanted) context.fillRect(left + (i % across) * pitch, Math.floor(i / across) * pitch, cell, cell);
      }
    }
  });
}
