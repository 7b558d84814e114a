// A justified grid of any number of pictures: rows of equal height, only those near the window exist.

import { draw, bitsOf, differing } from "./bits.js";
import { make, svg, isTiny } from "./elements.js";
import { thumbnail } from "./api.js";

const GAP = 10;
const CAPTION = 34;
const AHEAD = 700; // points above and below the window
const UNKNOWN = 4 / 3;

export function aspect(item) {
  if (!item.picture) return 1;
  if (!item.width) return UNKNOWN;
  return Math.min(3.2, Math.max(0.42, item.width / item.height));
}

// Rows of [start, end) whose pictures, at one height, fill the width.
export function layOut(items, n, width, target, caption) {
  const rows = [];
  let top = 0;
  for (let start = 0; start < n; ) {
    let sum = 0;
    let end = start;
    while (end < n && (sum * target + GAP * (end - start - 1) < width || end === start)) sum += aspect(items[end++]);
    let height = (width - GAP * (end - start - 1)) / sum;
    if (end - start > 1) {
      // With the last picture the row is below the target height, without it above: take the nearer.
      const before = sum - aspect(items[end - 1]);
      const taller = (width - GAP * (end - start - 2)) / before;
      if (end < n && taller - target < target - height) {
        end--;
        height = taller;
      }
    }
    if (end === n) height = Math.min(height, target);
    rows.push({ start, end, top, height });
    top += height + caption + GAP;
    start = end;
  }
  return { rows, height: top };
}

// `onSize` hears of a picture whose size the server did not know yet.
export function pictureOf(item, { alt, eager = false, onSize = () => {} }) {
  if (!item.picture) return codePicture(item);
  const image = make("img", { src: thumbnail(item.id), alt, decoding: "async", loading: eager ? null : "lazy" });
  if (isTiny(item)) image.classList.add("tiny");
  image.addEventListener("load", () => {
    image.classList.add("there");
    if (item.width) return;
    item.width = image.naturalWidth;
    item.height = image.naturalHeight;
    if (isTiny(item)) image.classList.add("tiny");
    onSize();
  });
  image.addEventListener("error", () => image.replaceWith(codePicture(item)));
  return image;
}

function codePicture(item) {
  const canvas = make("canvas", { role: "img", "aria-label": `the code of ${item.name}` });
  draw(canvas, [{ bits: bitsOf(item.code, item.code.length * 4) }], 96);
  canvas.style.width = canvas.style.height = "";
  return canvas;
}

export class Grid {
  // onLook(place) opens the viewer; a click follows the tile's link.
  constructor(host, { onLook }) {
    this.host = host;
    this.onLook = onLook;
    this.items = [];
    this.shown = 0;
    this.query = null; // bits of the query: tiles then carry distances and patterns
    this.layout = { rows: [], height: 0 };
    this.drawn = new Map();
    this.focused = 0;
    this.waiting = false;
    host.setAttribute("role", "list");
    const later = () => {
      if (this.waiting) return;
      this.waiting = true;
      requestAnimationFrame(() => {
        this.waiting = false;
        this.render();
      });
    };
    addEventListener("scroll", later, { passive: true });
    new ResizeObserver(() => this.relayout()).observe(host);
    host.addEventListener("keydown", (event) => this.onKey(event));
    host.addEventListener("focusin", (event) => {
      const tile = event.target.closest(".tile");
      if (tile) this.setFocus(Number(tile.dataset.place));
    });
  }

  show(items, { query = null, shown = items.length } = {}) {
    const isSame = query && this.query && items.length >= this.items.length && this.items.length && items[0].id === this.items[0].id && String(query) === String(this.query);
    this.items = items;
    this.query = query;
    this.shown = shown;
    if (!isSame) this.focused = 0;
    this.clear();
    this.relayout();
  }

  limit(n) {
    if (n === this.shown) return;
    this.shown = n;
    this.relayout();
  }

  clear() {
    this.drawn.clear();
    this.host.replaceChildren();
  }

  target() {
    const first = this.items.slice(0, 24).filter((item) => item.picture);
    if (first.length && first.every(isTiny)) return 104;
    if (this.items.length && !first.length) return 96;
    return this.host.clientWidth < 560 ? 116 : 184;
  }

  relayout() {
    const width = this.host.clientWidth;
    if (!width) return;
    const caption = this.query ? CAPTION : 0;
    const old = this.layout;
    this.layout = layOut(this.items, Math.min(this.shown, this.items.length), width, this.target(), caption);
    this.host.style.height = `${Math.ceil(this.layout.height)}px`;
    // A row that did not change keeps its tiles.
    for (const [row, tiles] of this.drawn) {
      const a = old.rows[row];
      const b = this.layout.rows[row];
      if (!b || a.start !== b.start || a.end !== b.end || a.height !== b.height || a.top !== b.top || old.width !== width) {
        tiles.forEach((tile) => tile.remove());
        this.drawn.delete(row);
      }
    }
    this.layout.width = width;
    this.render();
  }

  relayoutSoon() {
    clearTimeout(this.soon);
    this.soon = setTimeout(() => this.relayout(), 150);
  }

  render() {
    const box = this.host.getBoundingClientRect();
    const from = -box.top - AHEAD;
    const to = -box.top + innerHeight + AHEAD;
    const { rows } = this.layout;
    let low = 0;
    for (let high = rows.length; low < high; ) {
      const middle = (low + high) >> 1;
      if (rows[middle].top + rows[middle].height + CAPTION < from) low = middle + 1;
      else high = middle;
    }
    const wanted = new Set();
    for (let row = low; row < rows.length && rows[row].top < to; row++) wanted.add(row);
    for (const [row, tiles] of this.drawn) {
      if (wanted.has(row) || tiles.some((tile) => tile.contains(document.activeElement))) continue;
      tiles.forEach((tile) => tile.remove());
      this.drawn.delete(row);
    }
    for (const row of wanted) if (!this.drawn.has(row)) this.drawn.set(row, this.build(rows[row]));
  }

  build({ start, end, top, height }) {
    const tiles = [];
    let left = 0;
    for (let place = start; place < end; place++) {
      const item = this.items[place];
      const width = aspect(item) * height;
      const tile = this.tile(item, place, width, height);
      Object.assign(tile.style, { left: `${left}px`, top: `${top}px`, width: `${width}px`, height: `${height + (this.query ? CAPTION : 0)}px` });
      this.host.append(tile);
      tiles.push(tile);
      left += width + GAP;
    }
    return tiles;
  }

  tile(item, place, width, height) {
    const away = this.query ? `${item.distance} of ${this.query.length} bits differ` : "";
    const frame = make("span", { class: "frame" }, pictureOf(item, { alt: item.name, eager: true, onSize: () => this.relayoutSoon() }));
    frame.style.height = `${height}px`;
    const link = make("a", { href: `#/item/${item.id}`, tabindex: place === this.focused ? 0 : -1, title: item.name, "aria-label": `${item.name}${away && `, ${away}`}. Search with it.` }, frame);
    if (this.query) {
      const canvas = make("canvas", { "aria-hidden": "true" });
      const bits = bitsOf(item.code, this.query.length);
      const patterns = [{ bits: this.query }, { bits: differing(bits, this.query), kind: "differs" }];
      draw(canvas, width < 88 ? patterns.slice(1) : patterns, 24);
      const unit = item.distance === 1 ? "bit" : "bits";
      link.append(make("span", { class: "caption" }, make("b", {}, String(item.distance)), width < 116 ? null : unit, canvas));
    }
    const icon = svg("svg", { viewBox: "0 0 20 20", "aria-hidden": "true" }, svg("path", { d: "M7.5 3H3v4.5M12.5 3H17v4.5M17 12.5V17h-4.5M7.5 17H3v-4.5" }));
    const look = make("button", { class: "icon-button look", type: "button", tabindex: -1, "aria-label": `View ${item.name}`, title: "View (Space)", onclick: () => this.onLook(place) }, icon);
    return make("div", { class: "tile", role: "listitem", "data-place": place, "data-id": item.id, "aria-setsize": this.shown, "aria-posinset": place + 1 }, link, look);
  }

  link(place) {
    return this.host.querySelector(`.tile[data-place="${place}"] a`);
  }

  setFocus(place) {
    if (place === this.focused) return;
    this.link(this.focused)?.setAttribute("tabindex", -1);
    this.focused = place;
    this.link(place)?.setAttribute("tabindex", 0);
  }

  focus(place) {
    const row = this.layout.rows.find(({ end }) => place < end);
    if (!row) return;
    const top = this.host.getBoundingClientRect().top + row.top;
    const bottom = top + row.height + CAPTION;
    if (top < 140) scrollBy({ top: top - 140 });
    else if (bottom > innerHeight - 16) scrollBy({ top: bottom - innerHeight + 16 });
    this.render();
    this.setFocus(place);
    this.link(place)?.focus({ preventScroll: true });
  }

  onKey(event) {
    if (event.altKey || event.ctrlKey || event.metaKey || !event.target.closest(".tile")) return;
    const last = Math.min(this.shown, this.items.length) - 1;
    const rows = this.layout.rows;
    const row = rows.findIndex(({ end }) => this.focused < end);
    const middle = (place, { start, height }) => {
      let left = 0;
      for (let i = start; i < place; i++) left += aspect(this.items[i]) * height + GAP;
      return left + (aspect(this.items[place]) * height) / 2;
    };
    const beside = (step) => {
      const to = rows[row + step];
      if (!to) return this.focused;
      const wanted = middle(this.focused, rows[row]);
      let best = to.start;
      for (let i = to.start; i < to.end; i++) if (Math.abs(middle(i, to) - wanted) < Math.abs(middle(best, to) - wanted)) best = i;
      return best;
    };
    const moves = {
      ArrowRight: () => Math.min(last, this.focused + 1),
      ArrowLeft: () => Math.max(0, this.focused - 1),
      ArrowDown: () => beside(1),
      ArrowUp: () => beside(-1),
      Home: () => 0,
      End: () => last,
    };
    if (event.key in moves) {
      event.preventDefault();
      this.focus(moves[event.key]());
    } else if (event.key === " ") {
      event.preventDefault();
      this.onLook(this.focused);
    }
  }
}
